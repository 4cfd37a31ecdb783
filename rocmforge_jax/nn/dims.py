"""Checks the shapes of attention's operands. Under jit, the checks run only while tracing."""

import math

import numpy as np

from rocmforge_jax.arguments import as_integer

#: The largest number of elements of an operand: parts of XLA count elements in 32 bits.
MAX_ELEMENTS = 2**31 - 1


def validate_attention_dims(q, k, v, mask=None) -> None:
    """Checks the shapes of attention's operands.

    Args:
        q: [B, T, N, H]: an array, an object with a shape, or the shape itself.
        k: [B, S, K, H], like `q`. K divides N.
        v: [B, S, K, H], like `q`.
        mask: bool [B, T, S], like `q`, or None.

    Raises:
        ValueError: The operands do not fit together, or one has too many elements.
    """
    axes = "4 axes [batch, length, heads, head width]"
    q, k, v = (_checked_shape(name, x, axes, 4) for name, x in (("q", q), ("k", k), ("v", v)))
    for name, other in (("k", k), ("v", v)):
        if other[0] != q[0]:
            raise ValueError(f"q has batch {q[0]}, {name} has {other[0]}: they must be equal")
        if other[3] != q[3]:
            raise ValueError(f"q has head width {q[3]}, {name} has {other[3]}: they must be equal")
    for axis, what in ((1, "length"), (2, "heads")):
        if k[axis] != v[axis]:
            raise ValueError(f"k has {what} {k[axis]}, v has {v[axis]}: they must be equal")
    if q[2] % k[2]:
        raise ValueError(f"q has {q[2]} heads, k has {k[2]}: heads must be a multiple of KV heads")
    if (scores := q[0] * q[2] * q[1] * k[1]) > MAX_ELEMENTS:
        raise ValueError(
            f"attention of {q[1]} queries over {k[1]} slots, {q[2]} heads and batch {q[0]} has"
            f" {scores} scores, the limit is {MAX_ELEMENTS}"
        )
    if mask is not None:
        _check_mask(mask, (q[0], q[1], k[1]))


def _check_mask(mask, needed):
    if np.dtype(getattr(mask, "dtype", bool)) != np.bool_:
        raise ValueError(f"mask must be bool, true where a query sees a slot, got {mask.dtype}")
    shape = _checked_shape("mask", mask, "3 axes [batch, queries, slots]", 3)
    if shape != needed:
        raise ValueError(f"mask has shape {list(shape)}, q and k need {list(needed)}")


def _checked_shape(name, x, axes, ndim):
    shape = tuple(getattr(x, "shape", x))
    if len(shape) != ndim:
        raise ValueError(f"{name} needs {axes}, got {len(shape)}: {list(shape)}")
    sizes = tuple(as_integer(size) or 0 for size in shape)
    if min(sizes) < 1:
        raise ValueError(f"{name} has a size that is not a positive integer: {list(shape)}")
    if (elements := math.prod(sizes)) > MAX_ELEMENTS:
        raise ValueError(
            f"{name} of shape {list(shape)} has {elements} elements, the limit is {MAX_ELEMENTS}"
        )
    return sizes
