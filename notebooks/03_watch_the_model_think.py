# %% [markdown]
# # Watch the model think
#
# A decoder is a pile of layers that pass on one vector for each token, the residual stream. This notebook looks at what it would say after each token and each layer, what its heads attend to, and
# changes its mind by adding a direction to the stream.
#
# The pictures need matplotlib: `pip install 'rocmforge-jax[notebook]'`.

# %%
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

import rocmforge_jax as rf

lm = rf.load("demo", dtype=jnp.float32)  # or the path of a GGUF file
lm

# %% [markdown]
# ## Tokens
#
# The model reads tokens, not letters. The demo's vocabulary is small: common words are one token, others several.

# %%
prompt = "ROMEO:\nI pray thee, tell me where my love doth"
rf.explore.tokens(lm, prompt)

# %% [markdown]
# ## What comes next
#
# `next_tokens` returns the likeliest tokens after every token of the prompt, not only after the last. Entropy says how undecided the model is: 0 nats where only one token can follow.

# %%
found = rf.explore.next_tokens(lm, prompt)
found

# %%
rf.explore.plot_next_tokens(found)
plt.show()

# %% [markdown]
# Some things are certain: a line break follows a speaker's colon. The rest of a text is a matter of opinion, and each token of it has a price, its negative log-likelihood.

# %%
colon = found.prompt_pieces.index(":")
assert found.pieces[colon][0] == "\n" and found.probabilities[colon, 0] > 0.9

losses = rf.explore.perplexity_by_position(lm, prompt)
rf.explore.plot_perplexity_by_position(losses)
plt.show()

# %% [markdown]
# ## Layer by layer
#
# The logit lens gives the stream after each layer to the output head: what would the model say if it ended here? Early layers know word endings and common pairs; what is right in the end comes up late.

# %%
lens = rf.explore.logit_lens(lm, prompt)
rf.explore.plot_logit_lens(lens)
plt.show()

# %%
assert np.array_equal(lens.ids[-1, :, 0], found.ids[:, 0])  # the last layer is the model itself
winners = found.ids[:, 0]
for layer, ids in enumerate(lens.ids[:, :, 0]):
    print(f"after layer {layer}: {np.mean(ids == winners):4.0%} of the final answers are there")

# %% [markdown]
# The stream grows on its way, and a few channels grow much more than the others. Quantised activations have to cope with these.

# %%
statistics = rf.explore.activation_statistics(lm, prompt)
rf.explore.plot_activation_statistics(statistics)
plt.show()
statistics

# %% [markdown]
# ## Attention
#
# `attention_map` computes the probabilities of a layer from its own queries and keys, for all heads. Row by row: from which earlier tokens does a token take something?

# %%
attention = rf.explore.attention_map(lm, prompt, layer=1)
assert np.allclose(attention.probabilities.sum(axis=-1), 1, atol=1e-4)

# How much of its attention each head gives to the token before.
before = np.array([np.diag(head, -1).mean() for head in attention.probabilities])
print("attention to the token before:", *(f"{share:.0%}" for share in before))

# %%
head = int(before.argmax())
figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
rf.explore.plot_attention_map(attention, head=head, ax=axes[0])
rf.explore.plot_attention_map(attention, ax=axes[1])
plt.show()


# %% [markdown]
# ## Steering
#
# A layer can be replaced by any module that is called like it. This one adds a direction to the residual stream. The head
# is the transposed embedding, so the row of a word is the direction in which the word becomes likelier.

# %%
class Steer(nnx.Module):
    """A block that adds a direction to the residual stream, `strength` times."""

    def __init__(self, block, direction_D):
        self.block, self.direction_D = block, nnx.Param(direction_D)
        self.strength = nnx.Param(jnp.zeros(()))

    def __call__(self, x_BTD, tokens, state=None):
        x_BTD, state = self.block(x_BTD, tokens, state)
        added_D = self.strength[...] * self.direction_D[...]
        return x_BTD + added_D.astype(x_BTD.dtype)[None, None], state


layer, word = 2, " love"
(id,) = lm.tokenizer.encode(word)
direction_D = rf.dequantize(lm.model.token_embd.embedding)[id]
direction_D = direction_D / jnp.linalg.norm(direction_D)

# %% [markdown]
# The model is cloned, which copies no weights. The rest goes on as before: `generate`, `explore` and all else take the steered model. The strength is a parameter
# like any other, so changing it compiles nothing.

# %%
model = nnx.clone(lm.model)
model.blk[layer] = steer = Steer(model.blk[layer], direction_D)
steered = rf.LanguageModel(model, lm.tokenizer)

share = {}
for strength in (-30, 0, 30, 60):
    steer.strength[...] = jnp.float32(strength)
    found = rf.explore.next_tokens(steered, prompt, top=lm.model.config.vocabulary)
    place = found.ids[-1].tolist().index(id)
    share[strength] = found.probabilities[-1, place]
    print(f"{strength:+3d}: {word!r} is number {place + 1:3d} with {share[strength]:.3%}")

assert share[-30] < share[0] < share[30] < share[60]

# %% [markdown]
# A weak push changes what the text is about, a strong one leaves little else to say.

# %%
for strength in (0, 30, 60):
    steer.strength[...] = jnp.float32(strength)
    print(f"--- {strength:+d}")
    print(steered.generate("ROMEO:\n", max_tokens=30, seed=4).text.strip())
