# %% [markdown]
# # From GGUF to Flax NNX
#
# A GGUF file becomes an ordinary Flax NNX module, whose weights stay packed. This notebook loads the demo model and does with it what one
# does with modules:
# look inside, split, jit, differentiate, adapt, generate.

# %%
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import rocmforge_jax as rf

lm = rf.load("demo", dtype=jnp.float32)  # or the path of a GGUF file
model, tokenizer = lm.model, lm.tokenizer
lm

# %% [markdown]
# ## Look inside
#
# Modules have the names of the file's tensors: `blk.0.attn_q.weight` is `model.blk[0].attn_q.kernel`.
# A quantised matrix is a `QParam`, everything else an `nnx.Param`. Kernels are (in, out), as everywhere in Flax.

# %%
for path, variable in nnx.to_flat_state(nnx.state(model)):
    if path[:2] in (("token_embd", "embedding"), ("output_norm", "scale"), ("blk", 0)):
        value = variable.get_value()
        kind = value.type_name if isinstance(variable, rf.QParam) else value.dtype.name
        print(
            f"{rf.models.tensor_name(path):26} {type(variable).__name__:7} {kind:8} {value.shape}"
        )

# %% [markdown]
# What computes each operation here, and why? Equal layers share a line.

# %%
rf.kernel_report(model)

# %% [markdown]
# `x @ kernel` multiplies with the packed weight; the dense one is never stored. `rf.dequantize` makes it, when you ask.

# %%
kernel = model.blk[0].ffn_down.kernel
dense = rf.dequantize(kernel)
print(kernel.get_value(), f"{kernel.get_value().nbytes:,} bytes packed, {dense.nbytes:,} dense")

x = jax.random.normal(jax.random.key(0), (3, kernel.shape[0]))
exact = jnp.matmul(x, dense, precision="highest")
error = jnp.linalg.norm(x @ kernel - exact) / jnp.linalg.norm(exact)
# Compiled products round x to 15 bits, which is off by up to 1e-4.
assert error < 1e-4

# %% [markdown]
# ## Split, merge, jit
#
# `nnx.split` separates structure from arrays. A filter takes the packed weights apart from the others.

# %%
graphdef, packed, params = nnx.split(model, rf.QParam, nnx.Param)


def count(state):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state))


print(f"packed weights {count(packed):,} bytes, norm scales {count(params):,} bytes")
assert not any(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(packed))


# %% [markdown]
# The arrays are arguments of the jitted function, and `nnx.merge` makes a module of them again.
# A cache goes in and comes out with the new tokens in it. So a text can come in pieces: here in two halves, and the function is compiled
# once.

# %%
@jax.jit
def forward(packed, params, tokens_BT, cache):
    return nnx.merge(graphdef, packed, params)(tokens_BT, cache)


tokens_BT = jnp.array([tokenizer.encode("ROMEO:\nI pray thee, tell")], jnp.int32)
cache = model.init_cache(1, 64)  # batch, slots
for half_BT in jnp.split(tokens_BT, 2, axis=1):
    logits_BTV, cache = forward(packed, params, half_BT, cache)

print(half_BT.shape, "->", logits_BTV.shape)
assert cache.lengths_B == tokens_BT.shape[1] == 8

# %% [markdown]
# ## What comes next?
#
# The last position's logits are about the token after the prompt.

# %%
probabilities, ids = jax.lax.top_k(jax.nn.softmax(logits_BTV[0, -1]), 5)
for probability, id in zip(probabilities.tolist(), ids.tolist()):
    print(f"{probability:6.1%}  {tokenizer.decode([id])!r}")


# %% [markdown]
# ## Layer by layer
#
# The blocks are modules of their own, so a forward pass can be written out, to look at what lies between them: the residual stream.
# Given to the output head, the stream after each block says what it would predict (the "logit lens"). Without a cache this is a plain
# causal pass.

# %%
@nnx.jit
def layer_by_layer(model, tokens_BT):
    """Looks at the residual stream after each block, at the last token.

    Returns its norms [blocks, B] and the logits that it would give [blocks, B, V].
    """
    tokens = rf.models.Tokens.first(*tokens_BT.shape)
    x_BTD, streams = model.token_embd(tokens_BT), []
    for block in model.blk:
        x_BTD, _ = block(x_BTD, tokens)
        streams.append(x_BTD[:, -1])
    streams = jnp.stack(streams)
    return jnp.linalg.norm(streams, axis=-1), model.token_embd.attend(model.output_norm(streams))


# %% [markdown]
# The stream grows, and so, by and large, does the chance of the token that wins in the end.
# The last block's logits are those from above, where the text came in halves.

# %%
winner = int(logits_BTV[0, -1].argmax())
norms, lens_logits = layer_by_layer(model, tokens_BT)
for i, (norm, probabilities) in enumerate(zip(norms[:, 0], jax.nn.softmax(lens_logits[:, 0]))):
    print(
        f"after block {i}: norm {norm:5.1f}, {tokenizer.decode([winner])!r}"
        f" {probabilities[winner]:5.1%}"
    )

assert jnp.allclose(lens_logits[-1, 0], logits_BTV[0, -1], atol=1e-3)

# %% [markdown]
# `rf.explore.logit_lens` does this for every token of a prompt; `03_watch_the_model_think.ipynb` goes on from here.

# %% [markdown]
# ## A low-rank adapter
#
# Flax has one: `nnx.LoRA` adds `x @ a @ b` to what a module gives. Around a packed layer that is QLoRA: the weight stays as it is, `a` and
# `b` are trained.
# `nnx.clone` leaves the loaded model alone.
#
# `rf.lora` adds such adapters to all layers that match a pattern. Only those can be merged and saved with `rf.merge_lora` and `rf.save_lora`: see
# `05_qlora_on_a_packed_base.ipynb`.

# %%
tuned, rngs = nnx.clone(model), nnx.Rngs(0)
for block in tuned.blk:
    n_in, n_out = block.ffn_down.kernel.shape
    block.ffn_down = nnx.LoRA(n_in, 8, n_out, base_module=block.ffn_down, rngs=rngs)


# %% [markdown]
# ## Gradients
#
# The loss is the usual one, on a line that Shakespeare did not write.
# Gradients pass through the packed weights, which are constants. There is one for each `nnx.Param`: the norm scales and the adapters.

# %%
def loss(model, tokens_BT):
    """Mean negative log-likelihood of the tokens after the first, in nats; the likeliest tokens."""
    logits_BTV, _ = model(tokens_BT[:, :-1])
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), tokens_BT[:, 1:, None], axis=-1)
    return -chosen.mean(), logits_BTV.argmax(axis=-1)


loss_and_gradients = nnx.jit(nnx.value_and_grad(loss, has_aux=True))
line = "ROMEO:\nO GPU, GPU! wherefore art thou GPU?"
line_BT = jnp.array([tokenizer.encode(line)], jnp.int32)
(nll, _), gradients = loss_and_gradients(tuned, line_BT)

print(f"loss {nll:.2f}")
for name in ("attn_norm", "ffn_norm", "ffn_down"):
    for path, gradient in nnx.to_flat_state(gradients["blk"][0][name]):
        print(
            f"{f'blk.0.{name}.{path[-1]}':24} {gradient.shape!s:9}"
            f" norm {jnp.linalg.norm(gradient.get_value()):.3f}"
        )

# %% [markdown]
# `b` starts as zero, so an adapter changes nothing at first, and `a` has no gradient yet.

# %%
assert not gradients["blk"][0]["ffn_down"]["lora_a"].get_value().any()
assert gradients["blk"][0]["ffn_down"]["lora_b"].get_value().any()

# %% [markdown]
# Gradient descent, on the adapters only:

# %%
history = []
for _ in range(25):
    (nll, likeliest_BT), gradients = loss_and_gradients(tuned, line_BT)
    adapters = nnx.state(tuned, nnx.LoRAParam)
    gradients = nnx.filter_state(gradients, nnx.LoRAParam)
    nnx.update(
        tuned, jax.tree.map(lambda weight, gradient: weight - 0.5 * gradient, adapters, gradients)
    )
    history.append(float(nll))

print("loss:", ", ".join(f"{nll:.2f}" for nll in history[::4]))
assert history[-1] < history[0] / 10

# %% [markdown]
# It has learnt its line: after the first tokens, the likeliest one is the right one everywhere. `lm.model = tuned` would make `lm` speak so.

# %%
start = len(tokenizer.encode("ROMEO:\nO"))
print(tokenizer.decode(likeliest_BT[0, start - 1 :].tolist()))
assert jnp.array_equal(likeliest_BT[:, start - 1 :], line_BT[:, start:])

# %% [markdown]
# ## Text
#
# `lm.generate` runs model and sampling on the device. `temperature=0` takes the likeliest token each time. A notebook shades each token by its probability, the darker the likelier.

# %%
lm.generate("ROMEO:", max_tokens=20, temperature=0)

# %% [markdown]
# A higher temperature gives livelier text. Equal seeds give equal text. `stream=True` gives pieces as they come.

# %%
for seed in (1, 2):
    print(f"--- seed {seed}")
    for piece in lm.generate("JULIET:", stream=True, seed=seed, max_tokens=40, top_p=0.95):
        print(piece, end="")
    print()

first, again = (lm.generate("JULIET:", seed=1, max_tokens=40, top_p=0.95) for _ in range(2))
assert first.ids == again.ids

# %% [markdown]
# ## A new architecture
#
# Architectures are data. To show it, here is the demo's file again under a name that nobody knows.

# %%
import functools
import tempfile
from pathlib import Path

from rocmforge_jax.locate import resolve

gguf = rf.open_gguf(resolve("demo"))
metadata = {key.replace("llama.", "globe."): value for key, value in gguf.metadata.items()}
metadata["general.architecture"] = "globe"

folder = tempfile.TemporaryDirectory()
renamed = Path(folder.name) / "globe.gguf"
rf.gguf.write_gguf(
    renamed, metadata, {name: (tensor.format, tensor.data) for name, tensor in gguf.tensors.items()}
)

try:
    rf.load(renamed)
except rf.GGUFError as error:
    print(str(error).split(";")[0].replace(folder.name, "..."))
else:
    raise AssertionError("an unknown architecture was loaded")

# %% [markdown]
# `register` says what its files leave open: which elements of a head rotate as a pair, whether q, k and v have biases, and so on.
# Every tensor of a file must find its place in the module, and the other way round, or `load` says which did not.

# %%
read = functools.partial(rf.models.llama_like, interleaved=True)
rf.models.register(rf.models.Architecture("globe", read))
globe = rf.load(renamed, dtype=jnp.float32)
folder.cleanup()

assert jax.tree.all(jax.tree.map(np.array_equal, nnx.state(globe.model), nnx.state(model)))
globe
