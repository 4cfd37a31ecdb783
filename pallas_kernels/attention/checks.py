"""What operands of attention must look like.

Only shapes and dtypes are read, so checks cost nothing under jit.

"You are wrong" is ValueError, with the numbers. "The kernels cannot" is NotImplementedError, with
the reason.
"""

import math
import numbers

import jax.numpy as jnp

from pallas_kernels.attention.rule import Scoring
from pallas_kernels.targets import Target

MAX_HEAD_WIDTH = 256
#: Offsets of the Triton backend count elements in signed 32 bits.
MAX_ELEMENTS = 2**31 - 1
_DTYPES = ("float32", "bfloat16", "float16")


def check_operands(q, keys, values, positions, sinks, *, names) -> None:
    """names: of q and of `positions`, which name their axes: ("q_BTNH", "starts_B")."""
    arrays = {names[0]: q, "keys_BKHS": keys, "values_BKSH": values, names[1]: positions}
    arrays |= {} if sinks is None else {"sinks_N": sinks}
    sizes = {}
    for name, array in arrays.items():
        _check_axes(name, array.shape, sizes)
    (N, _), (K, _) = sizes["N"], sizes["K"]
    if N % K:
        raise ValueError(
            f"{names[0]} has {N} heads, keys_BKHS has {K}: heads must be a multiple of KV heads"
        )
    if keys.dtype != values.dtype:
        raise ValueError(
            f"keys_BKHS is {keys.dtype}, values_BKSH is {values.dtype}: they must be equal"
        )
    if not jnp.issubdtype(positions.dtype, jnp.integer):
        raise ValueError(f"{names[1]} must hold integers, got {positions.dtype}")
    for name, array in arrays.items():
        if name != names[1] and not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name} must hold floating-point numbers, got {array.dtype}")


def _check_axes(name, shape, sizes):
    """The letters after the underscore are the axes.

    Sizes, {letter: (size, whose)}, collects what earlier operands say.
    """
    axes = name.rpartition("_")[2]
    if len(shape) != len(axes):
        raise ValueError(f"{name} needs {len(axes)} axes, got {len(shape)}: {list(shape)}")
    for axis, size in zip(axes, shape):
        if size < 1:
            raise ValueError(f"{name} has an empty axis {axis}: {list(shape)}")
        expected, whose = sizes.setdefault(axis, (size, name))
        if size != expected:
            raise ValueError(
                f"axis {axis} is {expected} in {whose}, {size} in {name}: they must be equal"
            )


def check_scoring(scoring: Scoring) -> None:
    """The settings are numbers of the program, not arrays: other values are other programs."""
    if not isinstance(scoring.scale, numbers.Real) or not math.isfinite(scoring.scale):
        raise ValueError(f"scale must be a finite number, got {scoring.scale}")
    if scoring.window is not None and (
        not isinstance(scoring.window, numbers.Integral) or scoring.window < 1
    ):
        raise ValueError(f"window must be a positive integer or None, got {scoring.window}")
    if scoring.soft_cap is not None and not (
        isinstance(scoring.soft_cap, numbers.Real) and 0 < scoring.soft_cap < math.inf
    ):
        raise ValueError(f"soft_cap must be a positive number or None, got {scoring.soft_cap}")


def checked_new_tokens(new, keys_shape):
    """NewTokens whose shapes fit a cache, angles in float32. keys_shape: [B, K, H, S]."""
    B, K, H, _ = keys_shape
    for name, array in (("k_BKH", new.k_BKH), ("v_BKH", new.v_BKH)):
        if array.shape != (B, K, H):
            raise ValueError(
                f"{name} of the new tokens is {list(array.shape)}, the cache needs {[B, K, H]}"
            )
    cos, sin = new.cos_BR, new.sin_BR
    if (
        cos.shape != sin.shape
        or cos.ndim != 2
        or cos.shape[0] != B
        or not 0 < 2 * cos.shape[1] <= H
    ):
        raise ValueError(
            f"angles of {list(cos.shape)} and {list(sin.shape)} for {B} sequences with heads of {H}"
        )
    for scale in () if new.norms is None else new.norms[0]:
        if scale.shape != (H,):
            raise ValueError(f"the scale of a norm is {list(scale.shape)}, heads are {H} wide")
    return new._replace(cos_BR=cos.astype(jnp.float32), sin_BR=sin.astype(jnp.float32))


def require_kernels(target: Target | None, q, keys, values) -> None:
    """Refuse what the Triton kernels cannot do."""
    if target is None:
        raise NotImplementedError("attention kernels run on GPUs, and there is no target")
    if q.shape[-1] > MAX_HEAD_WIDTH:
        raise NotImplementedError(
            f"head width {q.shape[-1]}: attention kernels hold at most {MAX_HEAD_WIDTH}"
        )
    for name, array in (("q", q), ("keys", keys), ("values", values)):
        if array.dtype not in _DTYPES:
            raise NotImplementedError(
                f"{name} in {array.dtype}: attention kernels know {', '.join(_DTYPES)}"
            )
        require_fits(name, array.shape)


def require_fits(name: str, shape: tuple[int, ...]) -> None:
    if math.prod(shape) > MAX_ELEMENTS:
        raise NotImplementedError(
            f"{name} of shape {list(shape)}: attention kernels address at most {MAX_ELEMENTS}"
            " elements"
        )
