"""The cases of attention over a KV cache that each backend supports, and trials of its kernels."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.attention import AttentionRule
from rocmforge_jax.backends import Numerics, Operation, cpp, pallas
from rocmforge_jax.backends.trials import relative_error
from rocmforge_jax.nn.attention_calls import Attend, NewToken, NewTokensSpec
from rocmforge_jax.nn.kv_state import KVState, ring_size
from rocmforge_jax.nn.ring import unrolled
from rocmforge_jax.nn.rope import RopeConfig, rope_table

#: Largest accepted relative error of an attention kernel, for any dtype of the cache.
_ALLOWED = 1e-2


def _check_pallas(q, cache, rule, rotates: bool = True) -> str:
    on = pallas.check_attention(q, cache.keys, cache.values, rule)
    (_, T, N, H), K = q.shape, cache.keys.shape[1]
    several = T > 1 or rule.symmetric  # the same kernel
    kind = _kind(rule, cache, rotates)
    case = several, N // K, H, cache.keys.dtype, kind
    described = f"{'prefill' if several else 'decode'} attention of {N // K} heads of {H} a group"
    what = f"{described}, {cache.keys.dtype}{''.join(f', {part}' for part in kind)}"
    pallas.require(what, functools.partial(_trial_error, case), _ALLOWED)
    does = "flash attention" if several else "reads the cache once for all heads of a group"
    return f"{does}{_in_ring(cache)}, {on}"


def _in_ring(cache) -> str:
    return f" in a ring of {cache.length} slots" if cache.wraps else ""


def _kind(rule, cache, rotates: bool) -> tuple[str, ...]:
    """Names the properties of a case that change a kernel's code, properties of the rule first."""
    parts = {
        "not causal": not rule.causal,
        "window": rule.window is not None,
        "soft cap": rule.soft_cap is not None,
        "sinks": rule.sinks_N is not None,
        "ring": cache.wraps,
        "no rope": not rotates,
    }
    return tuple(name for name, there in parts.items() if there)


def _check_cpp(q, cache, rule) -> str:
    cpp.check_attention(q, cache.keys, rule)
    return f"reads the slots that hold tokens{_in_ring(cache)}, C++ with {cpp.instructions()}"


def _check_new_pallas(q, cache, rule, spec) -> str:
    if q.shape[1] > 1:
        before = "the tokens are stored by XLA before"
        return f"{_check_pallas(q, _attended(q, cache), rule)}; {before}{_in_a_copy(cache)}"
    pallas.check_new_token(rule)
    rotates = spec.rope is not None
    does = "norms, rotates, stores and" if rotates else "norms, stores and"
    return f"{does} {_check_pallas(q, cache, rule, rotates)}, in two launches"


def _check_new_cpp(q, cache, rule, spec) -> str:
    does = "stores in place" if spec.rope is None else "rotates and stores in place"
    if q.shape[1] == 1:
        return f"{does}, then {_check_cpp(q, cache, rule)}"
    return f"{does}, then {_check_cpp(q, _attended(q, cache), rule)}{_in_a_copy(cache)}"


def _attended(q, cache) -> KVState:
    """Returns the shapes of the buffer that several new tokens attend to."""
    if not cache.wraps:
        return cache
    starts_B = jax.ShapeDtypeStruct(q.shape[:1], jnp.int32)
    return jax.eval_shape(lambda ring, at_B: unrolled(ring, at_B, q.shape[1])[0], cache, starts_B)


def _in_a_copy(cache) -> str:
    return f"; all in a copy of the ring of {cache.length} slots" if cache.wraps else ""


def _check_masked(*operands) -> str:
    raise NotImplementedError("attention kernels take a rule, not a mask or segments")


#: Attention with a `Visible`.
MASKED = Operation("attention", {"pallas": _check_masked, "cpp": _check_masked})
ATTENTION = Operation("attention", {"pallas": _check_pallas, "cpp": _check_cpp})
NEW_TOKENS = Operation("attention", {"pallas": _check_new_pallas, "cpp": _check_new_cpp})


def _trial_error(case) -> jax.Array:
    """Returns the relative error of a kernel on a small random cache.

    The kernel for one token is also tried in its variant that stores the token first.
    """
    several, group, width, dtype, kind = case
    window, ring = 37 if "window" in kind else None, "ring" in kind
    T, K = (5 if several else 1), 2
    S, start = (ring_size(window), 200) if window and ring else (100, 70)  # the ring has wrapped
    shapes = [(1, T, K * group, width), (1, K, width, S), (1, K, S, width), *[(1, T, K, width)] * 2]
    random = [jax.random.normal(jax.random.key(i), shape, dtype) for i, shape in enumerate(shapes)]
    (q, keys, values, k, v), starts = random, jnp.array([start], jnp.int32)
    rule = AttentionRule(
        width**-0.5,
        causal="not causal" not in kind,
        window=window,
        soft_cap=2.0 if "soft cap" in kind else None,
        sinks_N=jnp.linspace(-1, 1, K * group) if "sinks" in kind else None,
    )
    operands = q, keys, values, starts, rule
    attention = Attend("pallas", ring)
    pairs: list[tuple[Any, Any]] = [(attention(*operands), attention.plain(*operands))]
    if not several:
        rope = None if "no rope" in kind else RopeConfig(width // 2 * 2)
        token = NewToken(NewTokensSpec(rope, Numerics(), (1e-6, 1e-6)), quantizes=False)
        scales = jnp.full(width, 1.1), jnp.full(width, 0.9)
        table = None if rope is None else rope_table(starts[:, None], rope)
        cache = KVState(keys, values, window if ring else None)
        operands = q, k, v, table, cache, starts, scales, rule
        pairs.append((token(*operands), token.plain(*operands)))
    return relative_error(*zip(*pairs))
