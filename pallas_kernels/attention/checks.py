"""Checks of the operands of attention.

They read shapes and dtypes only, so they cost nothing under jit. They raise ValueError for wrong
operands, and NotImplementedError for operands that only the reference supports.
"""

import math

import jax.numpy as jnp

from pallas_kernels.attention.rule import AttentionRule
from pallas_kernels.targets import Target

#: The largest head width that the kernels support.
MAX_HEAD_WIDTH = 512
#: Offsets of the Triton backend count elements in signed 32 bits.
MAX_ELEMENTS = 2**31 - 1
_DTYPES = ("float32", "bfloat16", "float16")


def check_operands(arrays: dict, rule: AttentionRule, filled_B=None) -> None:
    """Raises ValueError, with names and numbers, unless shapes and dtypes fit together.

    Args:
        arrays: queries, keys_BKHS, values_BKSH and the array that determines which slots are seen,
            in this order. The letters after the underscore of a name are its axes.
        rule: the rule; the shape of its sinks is checked as well.
        filled_B: the number of filled slots, or None.
    """
    if filled_B is not None:
        _check_filled(filled_B, arrays, rule)
    arrays = arrays if rule.sinks_N is None else arrays | {"sinks_N": rule.sinks_N}
    q, keys, values, seen, *_ = arrays
    sizes = {}
    for name, array in arrays.items():
        _check_axes(name, array.shape, sizes)
    (N, _), (K, _) = sizes["N"], sizes["K"]
    if N % K:
        raise ValueError(f"{q} has {N} heads, {keys} has {K}: heads must be a multiple of KV heads")
    if (one := arrays[keys].dtype) != (other := arrays[values].dtype):
        raise ValueError(f"{keys} is {one}, {values} is {other}: they must be equal")
    kind, what = (jnp.bool_, "bool") if seen == "seen_BTS" else (jnp.integer, "integers")
    if not jnp.issubdtype(arrays[seen].dtype, kind):
        raise ValueError(f"{seen} must hold {what}, got {arrays[seen].dtype}")
    for name, array in arrays.items():
        if name != seen and not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name} must hold floating-point numbers, got {array.dtype}")


def _check_filled(filled_B, arrays: dict, rule: AttentionRule) -> None:
    if rule.causal:
        raise ValueError(
            "filled_B needs a rule with causal=False: others see no slot after a query"
        )
    batch = next(iter(arrays.values())).shape[:1]
    if filled_B.shape != batch or not jnp.issubdtype(filled_B.dtype, jnp.integer):
        raise ValueError(
            f"filled_B must be integers {list(batch)}, got {filled_B.dtype} {list(filled_B.shape)}"
        )


def _check_axes(name, shape, sizes):
    """Check the axes of an operand; sizes: {axis: (size, operand)} of earlier operands."""
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


def check_ring(slots: int, tokens: int, rule: AttentionRule) -> None:
    """Raises ValueError unless a ring of `slots` holds every position that `tokens` queries see."""
    if rule.window is None:
        raise ValueError(f"a ring of {slots} slots needs a rule with a window, got window=None")
    if (needed := rule.window + tokens - 1) > slots:
        raise ValueError(
            f"{tokens} new tokens with a window of {rule.window} see {needed} slots, the ring has"
            f" {slots}"
        )


def checked_new_tokens(new, keys_shape):
    """Check the shapes of NewTokens for keys [B, K, H, S]; return them with float32 angles."""
    B, K, H, _ = keys_shape
    for name, array in (("k_BKH", new.k_BKH), ("v_BKH", new.v_BKH)):
        if array.shape != (B, K, H):
            raise ValueError(
                f"{name} of the new tokens is {list(array.shape)}, the cache needs {[B, K, H]}"
            )
    for scale in () if new.norms is None else new.norms[0]:
        if scale.shape != (H,):
            raise ValueError(f"the scale of a norm is {list(scale.shape)}, heads are {H} wide")
    cos, sin = new.cos_BR, new.sin_BR
    if (cos is None) != (sin is None):
        given, missing = ("sin", "cos") if cos is None else ("cos", "sin")
        raise ValueError(f"new tokens have {given}_BR without {missing}_BR: give both or neither")
    if cos is None:
        return new
    if (
        cos.shape != sin.shape
        or cos.ndim != 2
        or cos.shape[0] != B
        or not 0 < 2 * cos.shape[1] <= H
    ):
        raise ValueError(
            f"angles of {list(cos.shape)} and {list(sin.shape)} for {B} sequences with heads of {H}"
        )
    return new._replace(cos_BR=cos.astype(jnp.float32), sin_BR=sin.astype(jnp.float32))


def require_kernel_rule(rule: AttentionRule) -> None:
    """Raises NotImplementedError for chunks and ALiBi, which only the reference computes."""
    if rule.chunk is not None:
        raise NotImplementedError(f"chunk={rule.chunk}: attention kernels know no chunks")
    if rule.alibi is not None:
        raise NotImplementedError(f"alibi={rule.alibi}: attention kernels know no ALiBi")


def require_one_sided(rule: AttentionRule) -> None:
    """Raises NotImplementedError for a two-sided window, which decode does not support."""
    if rule.symmetric:
        raise NotImplementedError(
            f"window={rule.window} with causal=False: the kernel for one token looks back only"
        )


def require_kernels(target: Target | None, q, keys, values, rule: AttentionRule) -> None:
    """Raises NotImplementedError for operands that the Triton kernels do not support."""
    require_kernel_rule(rule)
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


def require_whole_blocks(slots: int, block: int) -> None:
    """Raises NotImplementedError for a ring that does not consist of whole blocks of slots."""
    if slots % block:
        raise NotImplementedError(
            f"a ring of {slots} slots: attention kernels need a multiple of {block}"
        )


def require_fits(name: str, shape: tuple[int, ...]) -> None:
    """Raises NotImplementedError for an array whose offsets do not fit in 32 bits."""
    if math.prod(shape) > MAX_ELEMENTS:
        raise NotImplementedError(
            f"{name} of shape {list(shape)}: attention kernels address at most {MAX_ELEMENTS}"
            " elements"
        )
