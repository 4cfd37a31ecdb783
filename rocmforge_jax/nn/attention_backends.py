"""How each backend computes attention over a KV cache, and what it cannot."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.attention import AttentionRule, NewTokens, reference
from pallas_kernels.packing import GROUP
from pallas_kernels.qmatmul.activations import quantize_reference
from rocmforge_jax.backends import Numerics, Operation, cpp, differentiable, pallas
from rocmforge_jax.nn.kv_state import KVState, ring_size
from rocmforge_jax.nn.norm import rms_norm
from rocmforge_jax.nn.ring import rolled_up, unrolled
from rocmforge_jax.nn.rope import RopeConfig, apply_rope, rope_table

#: Largest relative error of an attention kernel that works, in any dtype of the cache.
_ALLOWED = 1e-2


@dataclasses.dataclass(frozen=True)
class NewTokensSpec:
    """What happens to new tokens before they attend, and to the result after it.

    Attributes:
        rope: Which elements of a head rotate, or None.
        numerics: The backend, and the mode in which the result is quantised for the next product.
        epsilons: Of the norms of queries and keys, or None.
    """

    rope: RopeConfig | None
    numerics: Numerics
    epsilons: tuple[float, float] | None = None


def _check_pallas(q, cache, rule, rotates: bool = True) -> str:
    on = pallas.check_attention(q, cache.keys, cache.values, rule)
    several, (_, _, N, H), K = q.shape[1] > 1, q.shape, cache.keys.shape[1]
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
    """Returns what changes the program of a kernel, parts of the rule first."""
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
        return f"{_check_pallas(q, _attended(q, cache), rule)}; {before}{_unrolled_ring(cache)}"
    rotates = spec.rope is not None
    does = "norms, rotates, stores and" if rotates else "norms, stores and"
    return f"{does} {_check_pallas(q, cache, rule, rotates)}, in two launches"


def _check_new_cpp(q, cache, rule, spec) -> str:
    does = "stores in place" if spec.rope is None else "rotates and stores in place"
    if q.shape[1] == 1:
        return f"{does}, then {_check_cpp(q, cache, rule)}"
    return f"{does}, then {_check_cpp(q, _attended(q, cache), rule)}{_unrolled_ring(cache)}"


def _attended(q, cache) -> KVState:
    """Returns the shapes of what several new tokens attend to."""
    if not cache.wraps:
        return cache
    starts_B = jax.ShapeDtypeStruct(q.shape[:1], jnp.int32)
    return jax.eval_shape(lambda ring, at_B: unrolled(ring, at_B, q.shape[1])[0], cache, starts_B)


def _unrolled_ring(cache) -> str:
    return f", into a copy of the ring of {cache.length} slots" if cache.wraps else ""


ATTENTION = Operation("attention", {"pallas": _check_pallas, "cpp": _check_cpp})
NEW_TOKENS = Operation("attention", {"pallas": _check_new_pallas, "cpp": _check_new_cpp})


def attend(backend: str, q_BTNH, cache: KVState, starts_B, rule: AttentionRule):
    """Computes attention of tokens that the cache holds already, on one backend."""
    operands = q_BTNH, cache.keys, cache.values, starts_B, rule
    on_backend = _Attend(backend, cache.wraps)
    return (
        on_backend.plain(*operands) if backend == "xla" else differentiable(on_backend, *operands)
    )


@dataclasses.dataclass(frozen=True)
class _Attend:
    """Attention on a backend as a function of arrays, and in plain XLA.

    ring: whether the slots are a ring buffer.
    """

    backend: str
    ring: bool = False

    def __call__(self, *operands):
        attend = cpp.attend if self.backend == "cpp" else pallas.attend
        return attend(*operands, ring=self.ring)

    def plain(self, *operands):
        return reference.prefill(*operands, ring=self.ring)


def attend_to_new(
    backend: str, spec: NewTokensSpec, q, k, v, table, cache, starts_B, lengths_B, scales, rule
):
    """Stores new tokens and attends to the cache, on one backend.

    Returns ((attention [B, T, N, H], its Activations or None), cache).
    """
    (B, T, _, H), operands = q.shape, (q, k, v, table, cache, starts_B, scales, rule)
    if T > 1 and cache.wraps:
        return _with_ring(backend, spec, lengths_B, *operands)
    if T > 1 or backend != "pallas":
        return _in_two_steps(backend, spec, *operands)
    quantizes = B <= pallas.gemv_rows(q.dtype) and H % GROUP == 0
    return differentiable(_NewToken(spec, quantizes), *operands)


def _with_ring(backend, spec, lengths_B, q, k, v, table, ring, starts_B, scales, rule):
    """Lets several new tokens attend to a copy of a ring buffer."""
    T = q.shape[1]
    buffer, first_B = unrolled(ring, starts_B, T)
    operands = q, k, v, table, buffer, starts_B - first_B, scales, rule
    out, buffer = _in_two_steps(backend, spec, *operands)
    ends_B = starts_B + (T if lengths_B is None else lengths_B)
    return out, rolled_up(buffer, first_B, ends_B, ring)


def _in_two_steps(backend, spec, q_BTNH, k_BTKH, v_BTKH, table, cache, starts_B, scales, rule):
    if scales is not None:
        heads = zip((q_BTNH, k_BTKH), scales, spec.epsilons)
        q_BTNH, k_BTKH = (rms_norm(*of_one) for of_one in heads)
    store = _store_in_cpp if backend == "cpp" else _store
    q_BTNH, cache = store(q_BTNH, k_BTKH, v_BTKH, table, spec.rope, cache, starts_B)
    return (attend(backend, q_BTNH, cache, starts_B, rule), None), cache


def rotated(heads_BTNH, table, rope: RopeConfig | None):
    """Returns `apply_rope` of heads, or the heads as they are where nothing rotates."""
    return heads_BTNH if rope is None else apply_rope(heads_BTNH, table, rope)


def _store(q_BTNH, k_BTKH, v_BTKH, table, rope, cache, starts_B):
    """Rotates queries and keys and writes keys and values, in plain XLA."""
    q_BTNH, k_BTKH = (rotated(heads, table, rope) for heads in (q_BTNH, k_BTKH))
    return q_BTNH, cache.write(k_BTKH, v_BTKH, starts_B)


def _store_in_cpp(q_BTNH, k_BTKH, v_BTKH, table, rope, cache, starts_B):
    return differentiable(_Store(rope), q_BTNH, k_BTKH, v_BTKH, table, cache, starts_B)


@dataclasses.dataclass(frozen=True)
class _Store:
    """`_store` in C++, in place where the cache is donated."""

    rope: RopeConfig | None

    def __call__(self, q_BTNH, k_BTKH, v_BTKH, table, cache, starts_B):
        B, T, *_ = q_BTNH.shape
        cos, sin = [jnp.zeros((B, T, 0), jnp.float32)] * 2 if self.rope is None else table
        new, old = (q_BTNH, k_BTKH, v_BTKH), (cache.keys, cache.values)
        q_BTNH, keys, values = cpp.rotate_and_store(
            *new,
            cos,
            sin,
            *old,
            cache.slots_of(starts_B, T),
            interleaved=self.rope is not None and self.rope.interleaved,
        )
        return q_BTNH, dataclasses.replace(cache, keys=keys, values=values)

    def plain(self, q_BTNH, k_BTKH, v_BTKH, table, cache, starts_B):
        return _store(q_BTNH, k_BTKH, v_BTKH, table, self.rope, cache, starts_B)


@dataclasses.dataclass(frozen=True)
class _NewToken:
    """One token of each sequence through Pallas, and in plain XLA.

    quantizes: whether the kernel also returns Activations for the product that follows.
    """

    spec: NewTokensSpec
    quantizes: bool

    def __call__(self, q_BTNH, k_BTKH, v_BTKH, table, cache, starts_B, scales, rule):
        rope = self.spec.rope
        q_BNH, k, v, *angles = (a[:, 0] for a in (q_BTNH, k_BTKH, v_BTKH, *(table or ())))
        cos, sin = angles or (None, None)
        norms: Any = None if scales is None else (scales, self.spec.epsilons)
        new = NewTokens(k, v, cos, sin, rope is not None and rope.interleaved, norms)
        mode = self.spec.numerics.activations if self.quantizes else None
        out, quantized, keys, values = pallas.attend_to_new_token(
            q_BNH, new, cache.keys, cache.values, starts_B, rule, mode, cache.wraps
        )
        return (out[:, None], quantized), dataclasses.replace(cache, keys=keys, values=values)

    def plain(self, *operands):
        (out, _), cache = _in_two_steps("xla", self.spec, *operands)
        if not self.quantizes:
            return (out, None), cache
        mode = self.spec.numerics.activations
        return (out, quantize_reference(out.reshape(len(out), -1), mode)), cache


def _trial_error(case) -> jax.Array:
    """Returns the relative error of a kernel on a small random cache.

    The kernel for one token is also tried with a token that is not in the cache yet.
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
    attention = _Attend("pallas", ring)
    pairs = [(attention(*operands), attention.plain(*operands))]
    if not several:
        rope = None if "no rope" in kind else RopeConfig(width // 2 * 2)
        token = _NewToken(NewTokensSpec(rope, Numerics(), (1e-6, 1e-6)), quantizes=False)
        scales = jnp.full(width, 1.1), jnp.full(width, 0.9)
        table = rope and rope_table(starts[:, None], rope)
        cache = KVState(keys, values, window if ring else None)
        operands = q, k, v, table, cache, starts, scales, rule
        found, exact = token(*operands), token.plain(*operands)
        pairs += zip(jax.tree.leaves(found), jax.tree.leaves(exact))

    def norm(a):
        return jnp.linalg.norm(a.astype(jnp.float32))

    return jnp.stack([norm(a - b) / norm(b) for a, b in pairs]).max()
