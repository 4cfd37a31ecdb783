# %% [markdown]
# # What quantisation costs
#
# Packed weights take a fifth of float32's memory. What is lost? This notebook takes a packed tensor apart, packs the demo model in several types, and measures the errors of the weights and of the
# predictions.
#
# The pictures need matplotlib: `pip install 'rocmforge-jax[notebook]'`.

# %%
import tempfile
from pathlib import Path

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import rocmforge_jax as rf
from rocmforge_jax.locate import resolve

lm = rf.load("demo", dtype=jnp.float32)  # or the path of a GGUF file
lm

# %% [markdown]
# ## A tensor taken apart
#
# A notebook shows a packed tensor as the histogram of its values and the fields of its first block. In Q5_1 each block of 32 weights has a scale `d`, a minimum `m`, and 5 bits for each weight, four of
# them in `qs` and the fifth in `qh`.

# %%
kernel = lm.model.blk[0].ffn_down.kernel
kernel.get_value()

# %% [markdown]
# ## Errors by type
#
# What this file holds counts as the truth here: every matrix is unpacked and packed again. `quantization_error` compares; its errors are relative to the root mean square of the weights.
#
# Types come in three families. `Q4_0`, `Q5_1`, `MXFP4` and their like have a scale for each block of 32 weights. K-quants (`Q4_K`) have blocks of 256, with small scales for groups of 16 or 32 weights and
# one scale for those: that makes room for minima or smaller groups. IQ types look their values up in tables.

# %%
types = ("Q8_0", "Q6_K", "Q5_1", "Q5_K", "Q5_0", "Q4_1", "Q4_K", "Q4_0", "IQ4_NL", "MXFP4")
types += ("IQ3_S", "Q3_K", "IQ3_XXS", "Q2_K", "IQ2_S")
rows = np.asarray(rf.dequantize(lm.model.token_embd.embedding))
by_bits = {}
for name in types:
    packed = rf.QTensor.from_bytes(rf.formats.quantize(rows, name), name)
    error = rf.explore.quantization_error(packed, rows)
    bits = rf.formats.get(name).bits_per_element
    by_bits[name] = bits, error.relative[0]
    print(
        f"{name:7} {bits:6.3f} bits  relative error {error.relative[0]:7.3%}  {error.snr[0]:.1f} dB"
    )


# %% [markdown]
# One bit more halves the error, which is 6 dB. The embedding is Q8_0 in this file, so Q8_0 holds it without an error.

# %%
def family(name):
    """The place of a type's family, for its colour."""
    return 2 if name.startswith("IQ") else 1 if name.endswith("_K") else 0


def label(ax, name, point):
    """Writes a type's name beside its point: above, below or to the left, by family."""
    x, y, side = ((5, 4, "left"), (5, -10, "left"), (-6, -3, "right"))[family(name)]
    ax.annotate(name, point, xytext=(x, y), textcoords="offset points", ha=side, fontsize=8)


figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for place, kind in enumerate(("blocks of 32", "K-quants", "IQ")):
    points = {n: one for n, one in by_bits.items() if family(n) == place and one[1] > 0}
    ax.semilogy(*zip(*points.values()), "o", color=f"C{place}", label=kind)
    for name, point in points.items():
        label(ax, name, point)
bits = np.linspace(2.4, 8.6)
ax.semilogy(bits, by_bits["Q6_K"][1] * 2.0 ** (by_bits["Q6_K"][0] - bits), ":", color="gray")
ax.set_xlabel("bits per weight")
ax.set_ylabel("relative error")
ax.legend()
plt.show()

# %% [markdown]
# The dotted line halves with each bit, through Q6_K. A type below the line makes more of its bits.
#
# ## Whole files
#
# `write_gguf` writes a file from metadata and tensors. One file has all weights in float32, the others have the matrices packed; vectors stay as they are. Rows of `ffn_down` have 640 numbers, which are no
# whole blocks of 256: like llama-quantize, we give them a type with blocks of 32 where the others are K-quants.

# %%
folder = tempfile.TemporaryDirectory()
source = rf.open_gguf(resolve("demo"))
dense = {
    name: np.asarray(rf.formats.dequantize(t.data, t.format)) for name, t in source.tensors.items()
}


in_place = {"Q6_K": "Q8_0", "Q5_K": "Q5_1", "Q4_K": "Q5_0", "Q3_K": "IQ4_NL", "Q2_K": "IQ4_NL"}


def packed_in(values, name):
    """The type and the blocks of a matrix."""
    if values.shape[-1] % rf.formats.get(name).block:
        name = in_place[name]
    return name, rf.formats.quantize(values, name)


def write(name):
    """Writes the model with its matrices in a type; returns the path."""
    path = Path(folder.name) / f"{name}.gguf"
    tensors = {
        tensor: packed_in(values, name) if values.ndim > 1 else ("F32", values)
        for tensor, values in dense.items()
    }
    rf.gguf.write_gguf(path, dict(source.metadata), tensors)
    return path


in_files = ("Q8_0", "Q6_K", "Q5_1", "Q5_K", "Q4_K", "Q4_0", "MXFP4", "Q3_K", "Q2_K")
paths = {name: write(name) for name in ("F32", *in_files)}
errors = rf.explore.quantization_error(
    paths["Q4_K"], paths["F32"], names=["blk.*.attn_[qkvo]*", "blk.*.ffn_[gud]*"]
)
rf.explore.plot_quantization_error(errors)
plt.show()

# %%
mean_errors = {}
for name in in_files:
    errors = rf.explore.quantization_error(paths[name], paths["F32"])
    mean_errors[name] = errors.relative[[len(shape) > 1 for shape in errors.shapes]].mean()
print({name: f"{error:.2%}" for name, error in mean_errors.items()})
assert mean_errors["Q8_0"] < mean_errors["Q6_K"] < mean_errors["Q5_K"] < mean_errors["Q4_K"]
assert mean_errors["Q4_K"] < mean_errors["Q4_0"] < mean_errors["Q2_K"]

# %% [markdown]
# ## What the predictions lose
#
# Weights are there to predict. Perplexity counts between how many tokens a model hesitates; here on a scene of Romeo and Juliet.

# %%
text = """
ROMEO:
But, soft! what light through yonder window breaks?
It is the east, and Juliet is the sun.
Arise, fair sun, and kill the envious moon,
Who is already sick and pale with grief,
That thou her maid art far more fair than she:
Be not her maid, since she is envious;
Her vestal livery is but sick and green
And none but fools do wear it; cast it off.
It is my lady, O, it is my love!
O, that she knew she were!

JULIET:
O Romeo, Romeo! wherefore art thou Romeo?
Deny thy father and refuse thy name;
Or, if thou wilt not, be but sworn my love,
And I'll no longer be a Capulet.
"""

perplexities, sizes = {}, {}
for name in ("F32", "Q8_0", "Q6_K", "Q5_1", "Q4_K", "Q4_0", "Q3_K", "Q2_K", "MXFP4"):
    model = rf.load(paths[name], dtype=jnp.float32)
    perplexities[name] = model.perplexity(text, window=128).value
    sizes[name] = paths[name].stat().st_size
    print(f"{name:6} {sizes[name] / 1e6:5.2f} MB  perplexity {perplexities[name]:.3f}")

assert abs(perplexities["Q8_0"] / perplexities["F32"] - 1) < 0.01
assert perplexities["F32"] < perplexities["Q4_K"] < perplexities["Q2_K"]
folder.cleanup()

# %%
figure, ax = plt.subplots(figsize=(7, 3.5), layout="constrained")
for name, value in perplexities.items():
    point = sizes[name] / 1e6, value
    ax.semilogx(*point, "o", color=f"C{family(name)}")
    label(ax, name, point)
ax.margins(0.15)
ax.set_xticks((1, 2, 4, 8, 16), ("1", "2", "4", "8", "16"))
ax.minorticks_off()
ax.set_xlabel("size of the file in MB")
ax.set_ylabel("perplexity")
plt.show()

# %% [markdown]
# ## Token by token
#
# The mean hides where it hurts. Loss by position shows what an aggressive type changes: most tokens cost the same, a few cost more, some even less.

# %%
packed = model  # the last of the loop, MXFP4
losses = {
    name: rf.explore.perplexity_by_position(one, text[:300])
    for name, one in (("file", lm), ("MXFP4", packed))
}
difference = losses["MXFP4"].losses - losses["file"].losses
figure, ax = plt.subplots(figsize=(9, 2.5), layout="constrained")
ax.bar(np.arange(1, len(difference) + 1), difference)
ax.set_xlabel("token")
ax.set_ylabel("loss, MXFP4 - file")
plt.show()

worst = int(difference.argmax())
print(f"{losses['file'].pieces[worst + 1]!r} costs {difference[worst]:.2f} nats more")
losses["MXFP4"]
