"""The unquantised formats: a block is one element, stored in its own dtype.

On the device, F64 and I64 are pairs of 32-bit words; see `Field.plane`.
"""

from rocmforge_jax.formats._wide import float32_of_float64, float32_of_int64
from rocmforge_jax.formats.format import Field, Format


def _plain(name, ggml_id, dtype, decode=lambda x: x.reshape(1), note="the value itself"):
    return Format(name, ggml_id, 1, (Field("x", dtype),), decode=decode, note=note)


def _wide(name, ggml_id, dtype, to_float32):
    return _plain(
        name,
        ggml_id,
        dtype,
        lambda x: to_float32(x).reshape(1),
        "the value itself, on the device rounded to float32",
    )


F32, F16, BF16 = (
    _plain("F32", 0, "float32"),
    _plain("F16", 1, "float16"),
    _plain("BF16", 30, "bfloat16"),
)
I8, I16, I32 = _plain("I8", 24, "int8"), _plain("I16", 25, "int16"), _plain("I32", 26, "int32")
I64, F64 = (
    _wide("I64", 27, "int64", float32_of_int64),
    _wide("F64", 28, "float64", float32_of_float64),
)
FORMATS = (F32, F16, I8, I16, I32, I64, F64, BF16)
