"""Grouped-query attention, written once: `vmap` over the KV heads makes MHA, GQA and MQA the same
code with other ratios.
"""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp

from pallas_kernels.attention.api import NewTokens, decode_attention, prefill_attention
from pallas_kernels.packing import GROUP
from pallas_kernels.qmatmul.activations import quantize_reference
from pallas_kernels.targets import Target
from rocmforge_jax.cpp import attention as native_attention
from rocmforge_jax.nn.cache import LayerCache
from rocmforge_jax.nn.norm import RMSNorm, rms_norm
from rocmforge_jax.nn.prepared import Prepared
from rocmforge_jax.nn.rope import RopeConfig, rope_table
from rocmforge_jax.nn.store import rotate_and_store
from rocmforge_jax.quant import kernels, native, trials

#: XLA addresses arrays with 32-bit elements counts in places; no operand of attention may have more
#: elements.
MAX_ELEMENTS = 2**31 - 1


def causal_mask(positions_BT, length: int):
    """Which of `length` slots a query at each position sees: bool [B, T, S], slot s for a query at
    position p if s <= p.
    """
    return jnp.arange(length)[None, None] <= positions_BT[..., None]


def attend(q_BTNH, cache: LayerCache, mask_BTS, *, scale: float | None = None):
    """softmax(q k^T * scale + mask) v over the slots of a cache -> [B, T, N, H] in q's dtype.

    Query head n reads KV head n // G. Scores and softmax are float32 whatever the cache's dtype,
    which is never cast as a whole. A query that sees no slot gets the mean of all values. scale:
    1/sqrt(H) unless given.
    """
    B, T, N, H = q_BTNH.shape
    K = cache.keys.shape[1]
    scale = H**-0.5 if scale is None else scale
    q_BKTGH = q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 1, 3, 4)

    def dot(spec, a, b):
        return jnp.einsum(
            spec, a.astype(b.dtype), b, precision="highest", preferred_element_type=jnp.float32
        )

    def one_group(q_TGH, keys_HS, values_SH, mask_TS):
        scores = dot("tgh,hs->tgs", q_TGH, keys_HS) * jnp.float32(scale)
        scores = jnp.where(mask_TS[:, None], scores, jnp.finfo(jnp.float32).min)
        return dot("tgs,sh->tgh", jax.nn.softmax(scores, axis=-1), values_SH)

    over_groups = jax.vmap(one_group, in_axes=(0, 0, 0, None))
    out_BKTGH = jax.vmap(over_groups)(q_BKTGH, cache.keys, cache.values, mask_BTS)
    return out_BKTGH.transpose(0, 2, 1, 3, 4).reshape(B, T, N, H).astype(q_BTNH.dtype)


def causal_attention(q_BTNH, cache: LayerCache, starts_B, *, implementation: str | None = None):
    """Attention of T new tokens, which the cache holds from slot starts_B[b] on: each sees the
    slots up to its own -> [B, T, N, H].

    implementation: None, "triton" (see `pallas_kernels.attention`), "native" (C++, on CPUs) or
    "xla", as for `quant.matmul`. Differentiable.
    """
    implementations = {"triton": _causal_triton, "native": _causal_native, "xla": _causal_xla}
    return kernels.dispatch(implementations, implementation, q_BTNH, cache, starts_B)


def attend_to_new(
    q_BTNH,
    k_BTKH,
    v_BTKH,
    table,
    rope: RopeConfig,
    cache: LayerCache,
    starts_B,
    *,
    mode: str,
    norms: tuple[RMSNorm, RMSNorm] | None = None,
    implementation: str | None = None,
) -> tuple[Prepared, LayerCache]:
    """T new tokens enter the cache at slots starts_B[b] on, rotated, and attend to it -> (attention
    [B, T, N * H], the cache with them).

    table: `rope_table` of their positions. norms: of the heads of queries and of keys, before they
    are rotated. mode: of the activations of the product that follows, for which a kernel prepares
    the result. implementation: None, "triton" (one token of each sequence: all in two launches),
    "native" (C++, on CPUs) or "xla", as for `quant.matmul`. Differentiable.
    """
    if rope.width > q_BTNH.shape[-1]:
        raise ValueError(
            f"rope rotates {rope.width} elements of a head, the head has {q_BTNH.shape[-1]}"
        )
    implementations = {"triton": _new_triton} | {
        name: functools.partial(_in_two_steps, name) for name in ("native", "xla")
    }
    scales = None if norms is None else tuple(norm.scale.get_value() for norm in norms)
    how = _How(rope, mode, None if norms is None else tuple(norm.epsilon for norm in norms))
    operands = q_BTNH, k_BTKH, v_BTKH, table, cache, starts_B, scales
    (out_BTNH, found), cache = kernels.dispatch(implementations, implementation, how, *operands)
    return Prepared(out_BTNH.reshape(*out_BTNH.shape[:2], -1), found), cache


@dataclasses.dataclass(frozen=True)
class _How:
    """What new tokens go through before they attend, and the mode of the Activations that they
    become after it.
    """

    rope: RopeConfig
    mode: str
    epsilons: tuple[float, float] | None = None


def _in_two_steps(name, how, q_BTNH, k_BTKH, v_BTKH, table, cache, starts_B, scales):
    if scales is not None:
        q_BTNH, k_BTKH = (rms_norm(*of) for of in zip((q_BTNH, k_BTKH), scales, how.epsilons))
    stored_by = "xla" if name == "triton" else name
    q_BTNH, cache = rotate_and_store(
        q_BTNH, k_BTKH, v_BTKH, table, how.rope, cache, starts_B, implementation=stored_by
    )
    return (causal_attention(q_BTNH, cache, starts_B, implementation=name), None), cache


def _new_triton(how, q_BTNH, *operands):
    (B, T, N, H), cache = q_BTNH.shape, operands[3]
    if T > 1:
        return _in_two_steps("triton", how, q_BTNH, *operands)
    target = kernel_target(False, N // cache.keys.shape[1], H, cache.keys.dtype)
    prepares = B <= kernels.few_rows_limit(q_BTNH.dtype) and H % GROUP == 0
    return kernels.differentiable(_NewToken(how, target, prepares), q_BTNH, *operands)


@dataclasses.dataclass(frozen=True)
class _NewToken:
    """The kernels as a function, and plain XLA's. prepares: Activations are wanted as well."""

    how: _How
    target: Target
    prepares: bool

    def __call__(self, *operands):
        return _new_token_kernel(self, *operands)

    def plain(self, *operands):
        (out, _), cache = _in_two_steps("xla", self.how, *operands)
        return (
            out,
            quantize_reference(out.reshape(len(out), -1), self.how.mode) if self.prepares else None,
        ), cache


@functools.partial(jax.jit, static_argnums=0)
def _new_token_kernel(of: _NewToken, q_BTNH, k_BTKH, v_BTKH, table, cache, starts_B, scales):
    q_BNH, *new = (a[:, 0] for a in (q_BTNH, k_BTKH, v_BTKH, *table))
    out, keys, values = decode_attention(
        q_BNH,
        cache.keys,
        cache.values,
        starts_B + 1,
        AttentionRule(q_BNH.shape[-1] ** -0.5),
        target=of.target,
        activations=of.how.mode if of.prepares else None,
        new=NewTokens(
            *new, of.how.rope.interleaved, None if scales is None else (scales, of.how.epsilons)
        ),
    )
    out, found = out if of.prepares else (out, None)
    return (out[:, None], found), LayerCache(keys, values)


def _causal_xla(q_BTNH, cache, starts_B):
    slots_BT = starts_B[:, None] + jnp.arange(q_BTNH.shape[1], dtype=jnp.int32)[None]
    return attend(q_BTNH, cache, causal_mask(slots_BT, cache.length))


def kernel_target(several: bool, group: int, width: int, dtype):
    """What to compile the kernels for; several: tokens, or one.

    NotImplementedError, with the reason, where there are none.
    """
    target = kernels.current_target()
    what = (
        f"{'prefill' if several else 'decode'} attention of {group} heads of {width} a group,"
        f" {dtype}"
    )
    trials.require_working(
        what, target, functools.partial(_kernel_error, several, group, width, dtype, target), 1e-2
    )
    return target


def _causal_triton(q_BTNH, cache, starts_B):
    (_, T, N, H), K = q_BTNH.shape, cache.keys.shape[1]
    target = kernel_target(T > 1, N // K, H, cache.keys.dtype)
    return kernels.differentiable(_Causal(target), q_BTNH, cache, starts_B)


@dataclasses.dataclass(frozen=True)
class _Causal:
    """The kernels as a function, and plain XLA's."""

    target: Target

    def __call__(self, q_BTNH, cache, starts_B):
        return _causal_kernel(self.target, q_BTNH, cache, starts_B)

    def plain(self, q_BTNH, cache, starts_B):
        return _causal_xla(q_BTNH, cache, starts_B)


def _causal_native(q_BTNH, cache, starts_B):
    native.require_float32(q_BTNH, cache.keys)
    return kernels.differentiable(_CausalNative(), q_BTNH, cache, starts_B)


@dataclasses.dataclass(frozen=True)
class _CausalNative:
    """The same of the function in C++, which reads the slots that hold tokens."""

    def __call__(self, q_BTNH, cache, starts_B):
        rule = types.SimpleNamespace(
            scale=q_BTNH.shape[-1] ** -0.5, causal=True, window=None, soft_cap=None, sinks_N=None
        )
        return native_attention.attend(q_BTNH, cache.keys, cache.values, starts_B, rule)

    def plain(self, q_BTNH, cache, starts_B):
        return _causal_xla(q_BTNH, cache, starts_B)


@functools.partial(jax.jit, static_argnums=0)
def _causal_kernel(target, q_BTNH, cache, starts_B):
    rule = AttentionRule(q_BTNH.shape[-1] ** -0.5)
    if q_BTNH.shape[1] > 1:
        return prefill_attention(q_BTNH, cache.keys, cache.values, starts_B, rule, target=target)
    return decode_attention(
        q_BTNH[:, 0], cache.keys, cache.values, starts_B + 1, rule, target=target
    )[:, None]


def _kernel_error(several, group, width, dtype, target):
    """Relative error of a kernel on a small random cache.

    Of one token, of what it does with a new one as well.
    """
    T, K, S = (5 if several else 1), 2, 100
    q, keys, values, k, v = (
        jax.random.normal(jax.random.key(i), shape, dtype)
        for i, shape in enumerate(
            (
                (1, T, K * group, width),
                (1, K, width, S),
                (1, K, S, width),
                (1, T, K, width),
                (1, T, K, width),
            )
        )
    )
    cache, starts = LayerCache(keys, values), jnp.array([70], jnp.int32)
    pairs = [(_causal_kernel(target, q, cache, starts), _causal_xla(q, cache, starts))]
    if not several:
        token = _NewToken(
            _How(RopeConfig(width // 2 * 2), "float", (1e-6, 1e-6)), target, prepares=False
        )
        operands = (
            q,
            k,
            v,
            rope_table(starts[:, None], token.how.rope),
            cache,
            starts,
            (jnp.full(width, 1.1), jnp.full(width, 0.9)),
        )
        found, exact = token(*operands), token.plain(*operands)
        pairs += zip(jax.tree.leaves(found), jax.tree.leaves(exact))

    def norm(a):
        return jnp.linalg.norm(a.astype(jnp.float32))

    return jnp.stack([norm(a - b) / norm(b) for a, b in pairs]).max()


def dot_product_attention(q, k, v, mask=None, *, scale: float | None = None):
    """Attention of q [B, T, N, H] over k, v [B, S, K, H], N a multiple of K -> [B, T, N, H].

    mask: bool [B, T, S] or None.
    """
    validate_attention_dims(q, k, v, mask)
    if mask is None:
        mask = jnp.ones((q.shape[0], q.shape[1], k.shape[1]), bool)
    return attend(q, LayerCache.of(k, v), mask, scale=scale)


def validate_attention_dims(q, k, v, mask=None) -> None:
    """Check q [B, T, N, H], k and v [B, S, K, H], mask [B, T, S] or None: arrays, or anything with
    a shape, or shapes.

    ValueError names the operands and both numbers. Nothing is computed, so it costs nothing under
    jit.
    """
    q, k, v = (
        _checked_shape(name, x, "4 axes [batch, length, heads, head width]", 4)
        for name, x in (("q", q), ("k", k), ("v", v))
    )
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
    scores = q[0] * q[2] * q[1] * k[1]
    if scores > MAX_ELEMENTS:
        raise ValueError(
            f"attention of {q[1]} queries over {k[1]} slots, {q[2]} heads and batch {q[0]} has"
            f" {scores} scores, the limit is {MAX_ELEMENTS}"
        )
    if mask is not None:
        if getattr(mask, "dtype", bool) != bool:
            raise ValueError(f"mask must be bool, true where a query sees a slot, got {mask.dtype}")
        mask = _checked_shape("mask", mask, "3 axes [batch, queries, slots]", 3)
        if mask != (q[0], q[1], k[1]):
            raise ValueError(f"mask has shape {list(mask)}, q and k need {[q[0], q[1], k[1]]}")


def _checked_shape(name, x, axes, ndim):
    shape = tuple(getattr(x, "shape", x))
    if len(shape) != ndim:
        raise ValueError(f"{name} needs {axes}, got {len(shape)}: {list(shape)}")
    if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in shape):
        raise ValueError(f"{name} has a size that is no positive integer: {list(shape)}")
    elements = 1
    for size in shape:
        elements *= size
    if elements > MAX_ELEMENTS:
        raise ValueError(
            f"{name} of shape {list(shape)} has {elements} elements, the limit is {MAX_ELEMENTS}"
        )
    return shape
