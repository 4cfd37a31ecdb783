"""The types that are not quantised: one element a block, held in their own dtype."""

from rocmforge_jax.formats.format import Field, Format


def _plain(name, ggml_id, dtype):
    return Format(name, ggml_id, 1, (Field("x", dtype),), decode=lambda x: x.reshape(1), note="the value itself")


F32, F16, F64 = _plain("F32", 0, "float32"), _plain("F16", 1, "float16"), _plain("F64", 28, "float64")
I8, I16, I32, I64 = _plain("I8", 24, "int8"), _plain("I16", 25, "int16"), _plain("I32", 26, "int32"), _plain("I64", 27, "int64")
BF16 = _plain("BF16", 30, "bfloat16")
FORMATS = (F32, F16, I8, I16, I32, I64, F64, BF16)
