"""The Pallas backend for GPUs: tries and calls the kernels of `pallas_kernels`.

Every call is jitted separately, so that the layers of a model share one trace.
"""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxlib import version as jaxlib_version

import pallas_kernels
from pallas_kernels import samples, targets
from pallas_kernels.attention import AttentionRule, NewTokens, decode_attention, prefill_attention
from pallas_kernels.attention.checks import require_kernels, require_one_sided
from pallas_kernels.delta_rule import DeltaHeads, Tokens, check_rule, launches_of_step, rule, step
from pallas_kernels.dequantize import dequantize as dequantize_planes
from pallas_kernels.dequantize import reference as dequantize_reference
from pallas_kernels.qmatmul import (
    GEMV_ROWS,
    Product,
    Weight,
    blocks,
    check_offsets,
    is_exact_in_bfloat16,
    multiply,
    multiply_skinny,
)
from pallas_kernels.router import Routing, Tiles, most_tokens
from pallas_kernels.router import by_expert as group_by_expert
from pallas_kernels.router import route as route_tokens
from pallas_kernels.selective_scan import ScanHeads, check_scan, check_step
from pallas_kernels.selective_scan import scan as scan_tokens
from pallas_kernels.selective_scan import step as scan_one_token
from pallas_kernels.targets import Target
from rocmforge_jax import settings
from rocmforge_jax.backends.choice import WrongDevice
from rocmforge_jax.backends.on_mesh import require_one_device
from rocmforge_jax.backends.trials import Trials

#: The largest relative error with which a product passes its trial, by mode of its activations.
_ALLOWED = {"int16": 1e-4, "int8": 2e-2, "float": 2e-6}
#: With at least MATRIX_ROWS rows of bfloat16 or float16, products use the matrix units. With at
#: most PACKED_ROWS, the kernel reads the packed weight.
MATRIX_ROWS, PACKED_ROWS = 4, 64


def target() -> Target:
    """Returns the compilation target of kernels.

    Raises:
        WrongDevice: There is no GPU.
        NotImplementedError: The model is split over several devices.
    """
    found = targets.current()
    if found is None:
        device = jax.default_backend().upper()
        raise WrongDevice(f"backend 'pallas' needs a GPU; this device is a {device}")
    require_one_device()
    return found


def require(what: str, error: Callable[[], jax.Array], allowed: float) -> None:
    """Tries a kernel on this device before its first use: see `Trials.require`.

    If the target is not this device, kernels cannot run, so nothing is tried.
    """
    on = target()
    if on == targets.of_device(jax.local_devices()[0]):
        _trials(on, settings.cache_folder()).require(what, error, allowed)


@functools.cache
def _trials(on: Target, folder: Path) -> Trials:
    return Trials(folder / "trials" / f"{_key()}.txt", str(on))


@functools.cache
def _key() -> str:
    """Returns a hash of everything that the result of a trial depends on."""
    device, folder = jax.local_devices()[0], Path(pallas_kernels.__file__).parent
    versions = [jax.__version__, jaxlib_version.__version__, device.client.platform_version]
    facts = [*versions, device.device_kind, settings.xla_flags()]
    sources = [path.read_bytes() for path in sorted(folder.rglob("*.py"))]
    return hashlib.sha256(b"\0".join([*map(str.encode, facts), *sources])).hexdigest()[:16]


def kernel_of_product(rows: int, dtype) -> str:
    """Returns which kernel multiplies `rows` rows of x: "gemv", "skinny_gemm" or "dequantize".

    float32 uses the GEMV for as many rows as it supports, because the matrix units would round it.
    """
    if 0 < rows <= gemv_rows(dtype):
        return "gemv"
    return "skinny_gemm" if 0 < rows <= packed_rows(dtype) else "dequantize"


def gemv_rows(dtype) -> int:
    """Returns the most rows of x for which the GEMV kernel is used."""
    return GEMV_ROWS if jnp.dtype(dtype).itemsize > 2 else MATRIX_ROWS - 1


def packed_rows(dtype) -> int:
    """Returns the most rows of x for which a kernel reads the packed weight."""
    return GEMV_ROWS if jnp.dtype(dtype).itemsize > 2 else PACKED_ROWS


def require_weight(weight, mode: str) -> None:
    """Tries the kernels for a weight's packing and a mode of activations before their first use.

    Raises NotImplementedError, with the reason, if they do not work or cannot address the weight.
    """
    error = functools.partial(_error_of_products, weight.packing, mode, target())
    what = f"the kernel for {weight.type_name} and {mode} activations"
    require(what, error, _ALLOWED[mode])
    check_offsets(weight.planes)


def rows_of_an_expert(pairs: int, experts: int) -> int:
    """Returns how many rows of one expert the skinny GEMM computes together."""
    return blocks.rows_of_an_expert(pairs, experts, target())


def shared_rows(pairs: int, experts: int, weights, dtype) -> int | None:
    """Returns how many rows of one expert the GEMV computes together, None for matrix units.

    Args:
        pairs: Pairs of a token and an expert.
        experts: Number of experts.
        weights: The packed weights of the experts.
        dtype: Of the tokens.
    """
    on = target()
    exact = dtype == jnp.bfloat16 and all(
        is_exact_in_bfloat16(weight.packing, on) for weight in weights
    )
    return blocks.shared_rows(pairs, experts, exact, on)


def gemv(
    x, products, *, mode: str, dtype, norm=None, epsilon: float = 0.0, shared=None
) -> list[jax.Array]:
    """Computes several products of a few rows of x: see `pallas_kernels.qmatmul.multiply`."""
    return _gemv(x, products, norm, mode, jnp.dtype(dtype), target(), epsilon, shared)


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _gemv(x, products, norm, mode, dtype, on, epsilon, shared=None):
    how = dict(mode=mode, dtype=dtype, target=on, norm=norm, epsilon=epsilon)
    return multiply(x, products, **how, shared=shared)


def skinny_gemm(
    x_MK, products, *, dtype, rows=None, norm=None, epsilon: float = 0.0
) -> list[jax.Array]:
    """Computes products of tens of rows of x: see `pallas_kernels.qmatmul.multiply_skinny`."""
    return _skinny(x_MK, products, jnp.dtype(dtype), target(), rows, norm, epsilon)


@functools.partial(jax.jit, static_argnums=(2, 3, 6))
def _skinny(x_MK, products, dtype, on, rows=None, norm=None, epsilon=0.0):
    return multiply_skinny(
        x_MK, products, dtype=dtype, target=on, rows=rows, norm=norm, epsilon=epsilon
    )


def dequantize(weight, dtype) -> jax.Array:
    """Returns the values [N, K] of a packed weight."""
    return _dequantize(weight.planes, weight.packing, jnp.dtype(dtype), target(), weight.groups)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _dequantize(planes, packing, dtype, on, groups):
    return dequantize_planes(planes, packing, dtype, target=on, groups=groups)


def check_attention(q, keys, values, rule: AttentionRule) -> Target:
    """Returns the target of attention kernels, or raises NotImplementedError with the reason."""
    require_kernels(on := target(), q, keys, values, rule)
    return on


def check_new_token(rule: AttentionRule) -> None:
    """Raises NotImplementedError, with the reason, unless `attend_to_new_token` supports a rule."""
    require_one_sided(rule)


def attend(
    q_BTNH, keys, values, starts_B, rule: AttentionRule, ring: bool = False, filled_B=None
) -> jax.Array:
    """Computes attention of T tokens that are already in the cache -> [B, T, N, H].

    ring: whether the cache is a ring buffer, which requires that T is 1. filled_B: see
    `prefill_attention`.
    """
    return _attend(q_BTNH, keys, values, starts_B, rule, filled_B, ring, target())


@functools.partial(jax.jit, static_argnums=(6, 7))
def _attend(q_BTNH, keys, values, starts_B, rule, filled_B, ring, on):
    if q_BTNH.shape[1] > 1 or rule.symmetric:
        operands = q_BTNH, keys, values, starts_B, rule
        return prefill_attention(*operands, target=on, filled_B=filled_B)
    lengths_B = starts_B + 1 if filled_B is None else filled_B
    operands = q_BTNH[:, 0], keys, values, lengths_B, rule
    return decode_attention(*operands, target=on, ring=ring)[:, None]


def attend_to_new_token(
    q_BNH, new: NewTokens, keys, values, starts_B, rule, mode: str | None, ring: bool = False
):
    """Writes one token of each sequence into the cache and computes its attention.

    Args:
        q_BNH: the queries of the tokens.
        new: the tokens.
        keys: the keys of the cache.
        values: the values of the cache.
        starts_B: the positions of the tokens.
        rule: which slots a query sees, and their weights.
        mode: a mode of activations, or None.
        ring: whether the cache is a ring buffer.

    Returns:
        The attention [B, N, H], its Activations in `mode` or None, and the cache's keys and values.
    """
    interleaved, epsilons = new.interleaved, None if new.norms is None else new.norms[1]
    operands = (*new[:4], None if new.norms is None else new.norms[0])
    static = interleaved, epsilons, mode, ring, target()
    return _attend_to_new_token(q_BNH, operands, keys, values, starts_B, rule, static)


@functools.partial(jax.jit, static_argnums=6)
def _attend_to_new_token(q_BNH, operands, keys, values, starts_B, rule, static):
    k, v, cos, sin, scales = operands
    interleaved, epsilons, mode, ring, on = static
    new = NewTokens(k, v, cos, sin, interleaved, None if scales is None else (scales, epsilons))
    out, keys, values = decode_attention(
        q_BNH, keys, values, starts_B + 1, rule, target=on, activations=mode, new=new, ring=ring
    )
    out, quantized = (out, None) if mode is None else out
    return out, quantized, keys, values


def check_delta_step(heads: DeltaHeads, batch: int) -> str:
    """Returns the number of launches of a delta net's step, in words.

    Raises NotImplementedError, with the reason, if the kernels do not support the heads.
    """
    return launches_of_step(heads, batch, target())


def delta_step(token, parameters, state, lengths_B, heads: DeltaHeads, epsilons, mode: str | None):
    """Computes a delta net for one token of each sequence: see `pallas_kernels.delta_rule.step`.

    Returns (output [B, N, W], state, the output's Activations in `mode` or None).
    """
    operands = token, parameters, state, lengths_B
    return _delta_step(operands, (heads, epsilons, mode, target()))


@functools.partial(jax.jit, static_argnums=1)
def _delta_step(operands, static):
    token, parameters, state, lengths_B = operands
    heads, epsilons, mode, on = static
    how = dict(lengths_B=lengths_B, epsilons=epsilons, activations=mode, target=on)
    out, state, *quantized = step(token, parameters, state, heads, **how)
    return out, state, quantized[0] if quantized else None


def check_delta_rule(sizes: tuple[int, ...]) -> None:
    """Raises NotImplementedError if the kernels do not support these B, T, N, H and W."""
    check_rule(sizes, target())


def delta_rule(tokens: Tokens, memory_BNHW, exact: bool):
    """Applies the delta rule to many tokens: see `pallas_kernels.delta_rule.rule`."""
    return _delta_rule(tokens, memory_BNHW, exact, target())


@functools.partial(jax.jit, static_argnums=(2, 3))
def _delta_rule(tokens, memory_BNHW, exact, on):
    return rule(tokens, memory_BNHW, exact=exact, target=on)


def check_scan_step(heads: ScanHeads, batch: int) -> None:
    """Raises NotImplementedError, with the reason, if the kernels do not support the heads."""
    check_step(heads, batch)


def scan_step(
    projected_BF, parameters, state, lengths_B, heads: ScanHeads, epsilon: float, mode: str | None
):
    """Computes a state space for one token of each sequence: see `selective_scan.step`.

    Returns (output [B, I], state, the output's Activations in `mode` or None).
    """
    operands = projected_BF, parameters, state, lengths_B
    return _scan_step(operands, (heads, epsilon, mode, target()))


@functools.partial(jax.jit, static_argnums=1)
def _scan_step(operands, static):
    projected_BF, parameters, state, lengths_B = operands
    heads, epsilon, mode, on = static
    how = dict(lengths_B=lengths_B, epsilon=epsilon, activations=mode, target=on)
    out, state, *quantized = scan_one_token(projected_BF, parameters, state, heads, **how)
    return out, state, quantized[0] if quantized else None


def check_selective_scan(sizes: tuple[int, ...]) -> None:
    """Raises NotImplementedError if the kernels do not support these B, T, N, H and W."""
    check_scan(sizes, target())


def selective_scan(tokens, a_N, d_N, memory_BNHW, exact: bool):
    """Applies a state space to many tokens: see `pallas_kernels.selective_scan.scan`."""
    return _selective_scan(tokens, a_N, d_N, memory_BNHW, exact, target())


@functools.partial(jax.jit, static_argnums=(4, 5))
def _selective_scan(tokens, a_N, d_N, memory_BNHW, exact, on):
    return scan_tokens(tokens, a_N, d_N, memory_BNHW, exact=exact, target=on)


def most_routed_tokens() -> int:
    """Returns the most tokens for which `route` is used."""
    return most_tokens(target())


def route(x_TD, kernel_DE, scale_D, routing: Routing, *, bias_E, selection_bias_E, epsilon: float):
    """Chooses the experts of each token: see `pallas_kernels.router`."""
    operands = x_TD, kernel_DE, scale_D, bias_E, selection_bias_E
    return _route(*operands, routing, epsilon, target())


@functools.partial(jax.jit, static_argnums=(5, 6, 7))
def _route(x_TD, kernel_DE, scale_D, bias_E, selection_bias_E, routing, epsilon, on):
    biases = dict(bias_E=bias_E, selection_bias_E=selection_bias_E)
    return route_tokens(x_TD, kernel_DE, scale_D, routing, **biases, epsilon=epsilon, target=on)


def by_expert(experts_TU, experts: int, rows: int) -> Tiles:
    """Groups pairs of a token and an expert: see `pallas_kernels.router.by_expert`."""
    return _by_expert(experts_TU, experts, rows, target())


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _by_expert(experts_TU, experts, rows, on):
    return group_by_expert(experts_TU, experts, rows, on)


def _error_of_products(packing, mode, on) -> jax.Array:
    """Returns the relative error of a small GEMV, or infinity if another kernel is wrong."""
    planes, x = _sample(packing)
    dense = dequantize_reference.dequantize(planes, packing)
    dot = functools.partial(jnp.dot, precision="highest")
    weight = Weight(planes, packing)
    product = Product((weight,))
    (y,) = _gemv(x, [product], None, mode, jnp.dtype("float32"), on, 0.0)
    exact = dot(x, dense.T)
    values = _dequantize(planes, packing, jnp.dtype("float32"), on, planes["codes"].shape[-1])
    narrow = x.astype(jnp.bfloat16)
    (y_narrow,) = _skinny(narrow, [product], jnp.dtype("float32"), on)
    rounded = y_narrow - dot(narrow.astype(jnp.float32), dense.T)
    norm = jnp.linalg.norm(exact)
    others_work = (values == dense).all() & (jnp.linalg.norm(rounded) < 1e-2 * norm)
    return jnp.where(others_work, jnp.linalg.norm(y - exact) / norm, jnp.inf)


@functools.partial(jax.jit, static_argnums=0)
def _sample(packing):
    planes = samples.random_planes(jax.random.key(0), packing, 72, 40)
    return planes, jax.random.normal(jax.random.key(1), (2, 40 * 32), jnp.float32)
