"""split and join keep every bit; affine is the values in the form that products use."""

import jax
import numpy as np
import pytest

from rocmforge_jax import formats
from rocmforge_jax.formats._bits import pack, unpack
from rocmforge_jax.formats.scales import SCHEMES

# Q8_K is left out: the random bits of its float32 scale are subnormal now and then, and XLA flushes
# such products.
AFFINE = [name for name, f in formats.FORMATS.items() if f.affine is not None and name != "Q8_K"]


def every_format_and_half_of_them_in_core():
    return [
        pytest.param(name, marks=pytest.mark.core if i % 2 else ())
        for i, name in enumerate(formats.FORMATS)
    ]


@pytest.mark.parametrize("name", every_format_and_half_of_them_in_core())
def test_join_is_the_inverse_of_split_for_every_bit(name, random_bytes):
    f = formats.get(name)
    extremes = np.repeat(np.array([[0xFF], [0]], np.uint8), f.block_bytes, axis=1)
    blocks = np.concatenate([random_bytes(name, 62, 1), extremes]).reshape(4, 16, f.block_bytes)
    planes = jax.jit(f.split)(blocks)
    for field in f.fields:
        dtype, shape = field.plane
        assert (planes[field.name].dtype, planes[field.name].shape) == (dtype, (4, 16, *shape))
    np.testing.assert_array_equal(jax.jit(f.join)(planes), blocks)


@pytest.mark.core
def test_planes_hold_the_fields_of_the_c_struct(reference):
    with np.load(reference / "dequant" / "q5_K.npz") as arrays:
        blocks = arrays["quantized_bytes"].reshape(-1, 176)
    planes = formats.get("Q5_K").split(blocks)
    struct = [
        ("d", "f2"),
        ("dmin", "f2"),
        ("scales", "u1", 12),
        ("qh", "u1", 32),
        ("qs", "u1", 128),
    ]
    for field in struct:
        np.testing.assert_array_equal(planes[field[0]], blocks.view(struct)[field[0]][:, 0])


@pytest.mark.core
def test_numbers_of_64_bits_are_pairs_of_words_low_word_first():
    planes = formats.get("I64").split(np.array([[1 + 5 * 2**32]], np.int64).view(np.uint8))
    assert planes["x"].tolist() == [[1, 5]]


@pytest.mark.parametrize("name", AFFINE)
def test_codes_times_scale_plus_bias_are_the_values(name, random_bytes):
    f = formats.get(name)
    rows = random_bytes(name, 4, 1024 // f.block)
    blocks = rows.reshape(-1, f.block_bytes)
    codes, scale, bias = jax.jit(jax.vmap(lambda block: f.affine(**f.split(block))))(blocks)
    assert codes.dtype == np.int8 and codes.shape == (len(blocks), f.block)
    assert scale.dtype == np.float32 and f.block % (scale.size // len(blocks)) == 0
    assert bias is None or (bias.dtype, bias.shape) == (scale.dtype, scale.shape)

    def column(a):
        return np.asarray(a, np.float64).reshape(-1, 1)

    with np.errstate(all="ignore"):
        values = np.asarray(codes).reshape(scale.size, -1) * column(scale) + (
            0 if bias is None else column(bias)
        )
        values = values.astype(np.float32).reshape(4, -1)
    np.testing.assert_array_equal(values, formats.dequantize(rows, name))


@pytest.mark.core
@pytest.mark.parametrize(
    ("shape", "dtype"), [((3, 17), np.uint8), ((18,), np.int8), ((), np.uint8)]
)
def test_split_refuses_what_is_no_block(shape, dtype):
    with pytest.raises(ValueError, match=rf"Q4_0 .* uint8 \[\.\.\., 18\].* {np.dtype(dtype)}"):
        formats.get("Q4_0").split(np.zeros(shape, dtype))


@pytest.mark.core
def test_join_refuses_missing_and_misshapen_planes():
    q4_0 = formats.get("Q4_0")
    planes = {"d": np.zeros(5, np.float16), "qs": np.zeros((5, 16), np.uint8)}
    with pytest.raises(ValueError, match=r"Q4_0 .*\['d', 'qs'\].*\['d'\]"):
        q4_0.join({"d": planes["d"]})
    with pytest.raises(ValueError, match=r"Q4_0\.qs .*uint8 \[\.\.\., 16\].*uint8 \[5, 15\]"):
        q4_0.join(planes | {"qs": np.zeros((5, 15), np.uint8)})
    with pytest.raises(ValueError, match=r"Q4_0\.d .*float16 \[\.\.\.\].*float32 \[5\]"):
        q4_0.join(planes | {"d": np.zeros(5, np.float32)})


@pytest.mark.core
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("run", [1, 3, 16])
def test_packing_codes_is_the_inverse_of_unpacking_them(run, bits, dtype):
    words = np.random.default_rng(0).integers(0, 2**32, (3, 2, 48), np.uint32).astype(dtype)
    codes = unpack(jax.numpy.asarray(words), bits, run)
    per_word = 8 * words.dtype.itemsize // bits
    assert codes.dtype == words.dtype and codes.shape == (3, 2, 48 * per_word)
    for element in (0, 1, run, 2 * run + run // 2, 48 * per_word - 1):
        word = element // (run * per_word) * run + element % run
        shift = element // run % per_word * bits
        np.testing.assert_array_equal(
            codes[..., element], words[..., word] >> shift & (2**bits - 1)
        )
    np.testing.assert_array_equal(pack(codes, bits, run, dtype), words)


@pytest.mark.core
@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_K", "Q6_K", "IQ4_XS", "MXFP4", "NVFP4"])
def test_packing_scales_is_the_inverse_of_unpacking_them(name, random_bytes):
    """Every bit of the fields comes back; signed scales of six bits are -32 to 31."""
    f = formats.get(name)
    planes = f.split(random_bytes(name, 50, 2).reshape(50, 2, -1))
    fields = [planes[field].reshape(50, 2, -1) for field in f.packing.scales]
    scheme = SCHEMES[f.packing.scheme]
    scales = scheme.unpack(*fields)
    assert scales.shape == (50, 2, f.block // 32 * f.packing.halves)
    for field, back in zip(fields, scheme.pack(scales), strict=True):
        assert back.dtype == field.dtype
        np.testing.assert_array_equal(back, field)
    if f.packing.scheme in ("six_bits", "high_and_low"):
        assert (scales.min(), scales.max()) == (-32, 31)
