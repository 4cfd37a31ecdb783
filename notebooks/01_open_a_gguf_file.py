# %% [markdown]
# # Open a GGUF file
#
# A GGUF file holds one model: metadata, a table of tensors, and the tensors' weights, packed in small blocks.
# This notebook opens the demo model that ships with the package, takes one block apart by hand, and shows what becomes of the blocks on a
# device.

# %%
import shutil
import sys
from pathlib import Path

import numpy as np

import rocmforge_jax as rf
from rocmforge_jax.locate import resolve

path = Path(shutil.copy(resolve("demo"), "demo.gguf"))  # or a file of yours
gguf = rf.open_gguf(path)
gguf

# %% [markdown]
# Only the head of the file has been read. The weights are memory-mapped, and JAX is not even imported: looking into a 40 GB file is as quick.
# Keys and tensors unfold with a click.

# %%
assert "jax" not in sys.modules

# %% [markdown]
# ## Metadata
#
# `gguf.metadata` is a mapping. A value is decoded when you ask for it.

# %%
for key, value in gguf.metadata.items():
    if not key.startswith("tokenizer."):
        print(f"{key:40} {value}")

# %% [markdown]
# The vocabulary is metadata too. Long arrays come as NumPy arrays, or as tuples of strings.

# %%
tokens = gguf.metadata["tokenizer.ggml.tokens"]
print(len(tokens), "tokens:", tokens[500:510])

tokenizer = rf.load_tokenizer(path)
ids = tokenizer.encode("Wherefore art thou?")
print(ids, [tokens[i] for i in ids])
assert tokenizer.decode(ids) == "Wherefore art thou?"

# %% [markdown]
# A notebook shows the tokens of a text as coloured spans. This part imports JAX.

# %%
rf.explore.tokens(tokenizer, "Wherefore art thou?\nI know not, sir.")

# %% [markdown]
# ## Tensors
#
# Shapes are row-major as in NumPy, the reverse of the order in the file. A projection is stored as (outputs, inputs).
# This file mixes five types. Vectors stay F32.

# %%
gguf.tensors

# %% [markdown]
# ## One Q5_1 block by hand
#
# Q5_1 packs 32 weights into 24 bytes: two float16 numbers `d` and `m`, and a 5-bit code `q` for each weight, whose value is `d * q + m`.
# `tensor.data` is a view of the bytes, one row of blocks for each output.

# %%
tensor = gguf.tensors["blk.0.attn_output.weight"]
print(tensor.format, tensor.data.dtype, tensor.data.shape)  # 256 inputs = 8 blocks of 24 bytes

block = tensor.data[0, :24]
print(bytes(block).hex(" ", 4))

# %% [markdown]
# The first four bytes are `d` and `m`.

# %%
d, m = block[0:4].view("<f2").astype(np.float32)
print(f"d = {d}, m = {m}")

# %% [markdown]
# Four bits of each code are in the last 16 bytes: the low nibbles are weights 0 to 15, the high nibbles weights 16 to 31.
# The fifth bits are in between, as one 32-bit integer: bit i belongs to weight i.

# %%
qh = block[4:8].view("<u4")[0]
qs = block[8:24]

nibbles = np.concatenate([qs & 0x0F, qs >> 4])
fifth = (qh >> np.arange(32, dtype=np.uint32)) & np.uint32(1)
codes = nibbles | (fifth.astype(np.uint8) << 4)
print(codes)
assert codes.max() <= 31

# %%
by_hand = d * codes.astype(np.float32) + m
print(by_hand[:4])


# %% [markdown]
# The library gives the same 32 values. Not nearly the same: the same bits, which are also those of ggml's C code.

# %%
def same_bits(a, b):
    return np.array_equal(np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32))


assert same_bits(rf.formats.dequantize(block, "q5_1"), by_hand)

# %% [markdown]
# `count` takes the first values only. That is for a row whose last block is not full.

# %%
assert same_bits(rf.formats.dequantize(block, "q5_1", count=5), by_hand[:5])

# %% [markdown]
# ## The declaration of a format
#
# Each type is declared once, as the fields of a block in file order. All else follows from that: sizes, the reader's checks, the products.

# %%
q5_1 = rf.formats.get("Q5_1")
for field in q5_1.fields:
    print(f"{field.name:3} {field.dtype:8} {field.shape!s:6} {field.nbytes:2} bytes")
print(
    f"{q5_1.block} weights in {q5_1.block_bytes} bytes, {q5_1.bits_per_element} bits each:"
    f" {q5_1.note}"
)
assert q5_1.block_bytes == len(block)

# %% [markdown]
# `split` cuts bytes into fields, `join` puts them together again. `affine` reads the fields of one block as codes, scale and bias.

# %%
fields = q5_1.split(block)
affine = q5_1.affine(**fields)
assert np.array_equal(affine.codes, codes)
assert (affine.scale, affine.bias) == (d, m)
assert np.array_equal(q5_1.join(fields), block)

# %% [markdown]
# The fields also make a NumPy dtype, and then a whole tensor is as easy to read as one block.

# %%
blocks = tensor.data.view(
    np.dtype([(field.name, field.dtype, field.shape) for field in q5_1.fields])
)
print(blocks.shape, "blocks")

nibbles = np.concatenate([blocks["qs"] & 0x0F, blocks["qs"] >> 4], axis=-1)
fifth = (blocks["qh"][..., None] >> np.arange(32, dtype=np.uint32)) & np.uint32(1)
codes = (nibbles | (fifth.astype(np.uint8) << 4)).astype(np.float32)
values = codes * blocks["d"][..., None].astype(np.float32) + blocks["m"][..., None].astype(
    np.float32
)

assert same_bits(rf.formats.dequantize(tensor.data, "Q5_1"), values.reshape(tensor.shape))

# %% [markdown]
# ## On the device
#
# A device wants each field of all blocks together, so loading turns the blocks into one array per field: the planes of a `QTensor`.
# Where the rows lie depends on the device. A GPU reads whole rows, so the blocks of a row are neighbours ("rows").
# A CPU works on many outputs at once, so these are neighbours ("columns").

# %%
for layout in ("rows", "columns"):
    weight = rf.QTensor.from_bytes(tensor.data, "Q5_1", layout=layout)
    print(weight)
    for name, plane in weight.planes.items():
        print(f"    {name:3} {plane.dtype!s:8} {plane.shape}")
    assert weight.nbytes == tensor.nbytes
    assert np.array_equal(weight.to_bytes(), tensor.data)

# %% [markdown]
# Nothing is lost and nothing is added: the planes have as many bytes as the file's blocks, and give them back.
# Transposing costs nothing either, it only changes how the planes are read.

# %%
dense = rf.dequantize(weight)
assert weight.T.planes is weight.planes
assert same_bits(rf.dequantize(weight.T), np.ascontiguousarray(np.asarray(dense).T))

# %% [markdown]
# Shown by itself, a packed tensor is a histogram of its values and its first block, taken apart as above.

# %%
weight

# %% [markdown]
# ## What packing costs
#
# `rf.formats.quantize` packs float32 values. Here it packs normally distributed ones; the error is its root mean square, relative to theirs.

# %%
original = np.random.default_rng(0).standard_normal((64, 1024), dtype=np.float32)
errors = {}
print("type    bits  error %   GB for 8 billion weights")
for name in ("F32", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "MXFP4"):
    restored = np.asarray(rf.formats.dequantize(rf.formats.quantize(original, name), name))
    errors[name] = np.sqrt(np.mean((restored - original) ** 2) / np.mean(original**2))
    bits = rf.formats.get(name).bits_per_element
    print(f"{name:6} {bits:5.2f}  {100 * errors[name]:7.3f}   {8e9 * bits / 8 / 1e9:5.1f}")

# %% [markdown]
# A bit more halves the error. A minimum for each block (the types that end in `_1`) makes it smaller again, for half a bit a weight.

# %%
assert errors["F32"] == 0
assert 1.9 < errors["Q4_1"] / errors["Q5_1"] < 2.2
assert errors["Q5_1"] < errors["Q5_0"] and errors["Q4_1"] < errors["Q4_0"]

# %% [markdown]
# ## What packing saves
#
# The weights stay packed in the device's memory while the model runs, so this is memory saved there, and memory traffic too.

# %%
elements = sum(int(np.prod(tensor.shape)) for tensor in gguf.tensors.values())
packed = sum(tensor.nbytes for tensor in gguf.tensors.values())
print(
    f"{elements:,} weights: {packed:,} bytes packed, {2 * elements:,} in bfloat16,"
    f" {4 * elements:,} in float32"
)
print(f"{8 * packed / elements:.2f} bits each, {4 * elements / packed:.1f} times less than float32")
assert 4 * elements / packed > 5

# %% [markdown]
# ## When a file is damaged
#
# Every number in a file is checked before it is used, so a download that was cut short says so at once.

# %%
import tempfile

with tempfile.TemporaryDirectory() as folder:
    cut = Path(folder) / "cut.gguf"
    cut.write_bytes(path.read_bytes()[:1_000_000])
    try:
        rf.open_gguf(cut)
    except rf.GGUFError as error:
        print(str(error).replace(folder, "..."))
    else:
        raise AssertionError("a file that ends early was opened")

# %% [markdown]
# Next: `02_gguf_to_flax_nnx.ipynb` turns the same file into a Flax NNX module.
