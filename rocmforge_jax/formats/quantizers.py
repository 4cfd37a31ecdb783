"""Quantises float32 values in NumPy, with the same bytes as ggml-quants.c.

The functions in C are quantize_q4_0 and its siblings. Every step is float32, as in C. A fused or
wider step would change codes that fall on a rounding boundary.
"""

import ml_dtypes
import numpy as np

from rocmforge_jax.formats._grid_quantizers import GRID_QUANTIZERS
from rocmforge_jax.formats._k_quantizers import K_QUANTIZERS
from rocmforge_jax.formats._rounding import away_from_zero, in_threads, inverse
from rocmforge_jax.formats._search import asymmetric, row_weights, symmetric
from rocmforge_jax.formats._small_quantizers import SMALL_QUANTIZERS, nearest_e2m1
from rocmforge_jax.formats.format import Format
from rocmforge_jax.formats.mx import E8M0_BIAS, multiples, pack6
from rocmforge_jax.formats.registry import get

#: Blocks searched at once: as many as stay in the cache.
CHUNK = 4096


def quantize(values, format: str | int | Format) -> np.ndarray:
    """Quantises rows of values: [..., elements] -> uint8 [..., row bytes].

    Q4_0, Q4_1, Q5_0 and Q5_1 use ggml's search for the least weighted squared error, with all
    importances 1. The K and IQ types use ggml's search without importances, as in llama-quantize.
    The other types have no search in ggml. MXFP6 follows OCP MX: the shared exponent comes from the
    largest magnitude; elements are rounded to the nearest code, ties to even, and saturate. F32,
    F16 and BF16 are only converted.

    Args:
        values: A NumPy or JAX array of float32, bfloat16 or float16.
        format: A name in upper or lower case, a ggml id, or a Format.

    Raises:
        NotImplementedError: There is no quantiser for the format.
        ValueError: The dtype is another one, rows are not whole blocks, or values are NaN, infinite
            or too large. The limit is the format's float16 scale or minimum; for F16, BF16 and
            NVFP4, it is the type itself.
    """
    format = get(format)
    require_quantizer(format)
    values = np.asarray(values)
    if values.dtype.name not in ("float32", "bfloat16", "float16") or values.ndim < 1:
        raise ValueError(
            "values to quantize are float32, bfloat16 or float16 [..., elements], got"
            f" {values.dtype} {list(values.shape)}"
        )
    values = values.astype(np.float32, copy=False)
    if bad := values.size - np.count_nonzero(np.isfinite(values)):
        raise ValueError(
            f"{bad} of {values.size} values are NaN or infinite, which {format.name} cannot hold"
        )
    row_shape = (*values.shape[:-1], format.row_bytes(values.shape[-1]))
    if not values.size:  # the search has nothing to put together
        return np.zeros(row_shape, np.uint8)
    with np.errstate(over="ignore", invalid="ignore"):  # _refuse_infinite says it with numbers
        fields = _QUANTIZERS[format.name](values.reshape(-1, values.shape[-1]))
    _refuse_infinite(fields, values, format)
    return np.concatenate(
        [_bytes(field, values.size // format.block) for field in fields], axis=-1
    ).reshape(row_shape)


def require_quantizer(format: Format) -> None:
    """Raises NotImplementedError if there is no quantiser for a format."""
    if format.name not in _QUANTIZERS:
        why = ", whose codes ggml chooses with an importance matrix"
        raise NotImplementedError(
            f"no quantizer for {format.name}{why if format.name.startswith('IQ') else ''}; the"
            f" types of files that have one are {', '.join(filter(_is_in_files, _QUANTIZERS))}"
        )


def _is_in_files(name: str) -> bool:
    """Returns whether GGUF files have weights of a format."""
    return get(name).ggml_id is not None and name != "Q8_K"


def _refuse_infinite(fields, values, format):
    floats = [field for field in fields if field.dtype.kind not in "ui"]
    if not all(np.isfinite(field.astype(np.float32)).all() for field in floats):
        largest = float(ml_dtypes.finfo(floats[0].dtype).max)
        raise ValueError(
            f"values up to {np.abs(values).max():g} are too large for {format.name}: its"
            f" {floats[0].dtype} numbers end at {largest:g}"
        )


def _bytes(field, blocks):
    """[blocks] or [blocks, n] of any dtype -> uint8 [blocks, bytes]."""
    return np.ascontiguousarray(field.reshape(blocks, -1)).view(np.uint8)


def _nibbles(codes):
    """uint8 [blocks, 32] -> uint8 [blocks, 16]: the second half goes to the high nibbles."""
    return (codes[:, :16] & 15) | (codes[:, 16:] << 4)


def _fifth_bits(codes):
    """uint8 [blocks, 32] -> uint8 [blocks, 4]: bit i is the fifth bit of element i."""
    return np.packbits(codes >> 4, axis=-1, bitorder="little")


def _searched(search, bits):
    """The quantizer of a legacy type from the search for its scale (and minimum)."""

    def quantize_rows(rows):
        x, weights = (np.ascontiguousarray(a.reshape(-1, 32).T) for a in (rows, row_weights(rows)))
        chunks = [slice(start, start + CHUNK) for start in range(0, x.shape[1], CHUNK)]
        found = in_threads(search, [(x[:, chunk], weights[:, chunk], bits) for chunk in chunks])
        *scales, codes = (np.concatenate(parts, axis=-1) for parts in zip(*found, strict=True))
        fifth = [_fifth_bits(codes.T)] if bits == 5 else []
        return *(scale.astype(np.float16) for scale in scales), *fifth, _nibbles(codes.T)

    return quantize_rows


def _q8_0(rows):
    x = rows.reshape(-1, 32)
    d = np.abs(x).max(axis=-1, keepdims=True) / np.float32(127)
    return d.astype(np.float16), away_from_zero(x * inverse(d)).astype(np.int8)


def _shared_exponent(x, largest_exponent, floor_log2):
    """Finds the E8M0 byte that brings the largest magnitude to 2^largest_exponent or above.

    Takes x [blocks, 32]; returns int32 [blocks, 1], 0 to 254.
    """
    largest = np.abs(x).max(axis=-1, keepdims=True)
    exponent = floor_log2(np.where(largest > 0, largest, 1)) - largest_exponent + E8M0_BIAS
    return np.where(largest > 0, np.clip(exponent, 0, 254), 0)


def _rounded_log2(x):
    """As ggml takes it, in float32: a number just below a power of two may count as that power."""
    return np.floor(np.log2(x.astype(np.float64)).astype(np.float32)).astype(np.int32)


def _exact_log2(x):
    return np.frexp(x)[1] - 1


def _mxfp4(rows):
    x = rows.reshape(-1, 32)
    e = _shared_exponent(x, 2, _rounded_log2)
    half_scale = np.ldexp(np.float32(1), e - E8M0_BIAS - 1)
    return e.astype(np.uint8), _nibbles(nearest_e2m1(x, half_scale))


def _mxfp6(mantissa_bits, smallest, largest_exponent):
    """Makes the quantiser of an MXFP6 type.

    Its magnitudes are multiples of 2^smallest, and its highest binade is 2^largest_exponent.
    """
    magnitudes = multiples(mantissa_bits, 32) * np.float32(2.0**smallest)
    middles = (magnitudes[1:] + magnitudes[:-1]) / 2

    def quantize_rows(rows):
        x = rows.reshape(-1, 32)
        e = _shared_exponent(x, largest_exponent, _exact_log2)
        scaled = np.abs(np.ldexp(x, E8M0_BIAS - e))
        codes = np.searchsorted(middles, scaled)
        tie = scaled == middles[np.minimum(codes, 30)]
        codes = codes + (tie & (codes % 2 == 1))
        return pack6((codes | np.signbit(x) << 5).astype(np.uint8)), e.astype(np.uint8)

    return quantize_rows


_QUANTIZERS = {
    "F32": lambda rows: (rows,),
    "F16": lambda rows: (rows.astype(np.float16),),
    "BF16": lambda rows: (rows.astype(ml_dtypes.bfloat16),),
    "Q4_0": _searched(symmetric, bits=4),
    "Q4_1": _searched(asymmetric, bits=4),
    "Q5_0": _searched(symmetric, bits=5),
    "Q5_1": _searched(asymmetric, bits=5),
    "Q8_0": _q8_0,
    "MXFP4": _mxfp4,
    **K_QUANTIZERS,
    **GRID_QUANTIZERS,
    **SMALL_QUANTIZERS,
    "MXFP6_E2M3": _mxfp6(3, smallest=-3, largest_exponent=2),
    "MXFP6_E3M2": _mxfp6(2, smallest=-4, largest_exponent=4),
}
