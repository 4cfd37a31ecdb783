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
from rocmforge_jax.nn.kv_state import KVState
from rocmforge_jax.nn.norm import rms_norm
from rocmforge_jax.nn.rope import RopeConfig, apply_rope, rope_table

#: Largest relative error of an attention kernel that works, in any dtype of the cache.
_ALLOWED = 1e-2


@dataclasses.dataclass(frozen=True)
class NewTokensSpec:
    """What happens to new tokens before they attend, and to the result after it.

    Attributes:
        rope: Which elements of a head rotate.
        numerics: The backend, and the mode in which the result is quantised for the next product.
        epsilons: Of the norms of queries and keys, or None.
    """

    rope: RopeConfig
    numerics: Numerics
    epsilons: tuple[float, float] | None = None


def _check_pallas(q, cache, rule) -> str:
    on = pallas.check_attention(q, cache.keys, cache.values)
    several, (_, _, N, H), K = q.shape[1] > 1, q.shape, cache.keys.shape[1]
    case = several, N // K, H, cache.keys.dtype, _kind(rule)
    described = f"{'prefill' if several else 'decode'} attention of {N // K} heads of {H} a group"
    what = f"{described}, {cache.keys.dtype}{''.join(f', {part}' for part in _kind(rule))}"
    pallas.require(what, functools.partial(_trial_error, case), _ALLOWED)
    does = "flash attention" if several else "reads the cache once for all heads of a group"
    return f"{does}, {on}"


def _kind(rule) -> tuple[str, ...]:
    """Returns the parts of a rule that change what a kernel computes."""
    parts = {
        "not causal": not rule.causal,
        "window": rule.window is not None,
        "soft cap": rule.soft_cap is not None,
        "sinks": rule.sinks_N is not None,
    }
    return tuple(name for name, there in parts.items() if there)


def _check_cpp(q, cache, rule) -> str:
    cpp.require_float32(q.dtype, cache.keys.dtype)
    return f"reads the slots that hold tokens, C++ with {cpp.instructions()}"


def _check_new_pallas(q, cache, rule, spec) -> str:
    if q.shape[1] > 1:
        return f"{_check_pallas(q, cache, rule)}; the tokens are stored by XLA before"
    return f"norms, rotates, stores and {_check_pallas(q, cache, rule)}, in two launches"


def _check_new_cpp(q, cache, rule, spec) -> str:
    return f"rotates and stores in place, then {_check_cpp(q, cache, rule)}"


ATTENTION = Operation("attention", {"pallas": _check_pallas, "cpp": _check_cpp})
NEW_TOKENS = Operation("attention", {"pallas": _check_new_pallas, "cpp": _check_new_cpp})


def attend(backend: str, q_BTNH, cache: KVState, starts_B, rule: AttentionRule):
    """Computes attention of tokens that the cache holds already, on one backend."""
    if backend == "xla":
        return reference.prefill(q_BTNH, cache.keys, cache.values, starts_B, rule)
    return differentiable(_Attend(backend), q_BTNH, cache.keys, cache.values, starts_B, rule)


@dataclasses.dataclass(frozen=True)
class _Attend:
    """Attention on a backend as a function of arrays, and in plain XLA."""

    backend: str

    def __call__(self, *operands):
        return cpp.attend(*operands) if self.backend == "cpp" else pallas.attend(*operands)

    def plain(self, *operands):
        return reference.prefill(*operands)


def attend_to_new(backend: str, spec: NewTokensSpec, q_BTNH, *operands):
    """Stores new tokens and attends to the cache, on one backend.

    Returns ((attention [B, T, N, H], its Activations or None), cache).
    """
    if backend != "pallas" or q_BTNH.shape[1] > 1:
        return _in_two_steps(backend, spec, q_BTNH, *operands)
    B, _, _, H = q_BTNH.shape
    quantizes = B <= pallas.gemv_rows(q_BTNH.dtype) and H % GROUP == 0
    return differentiable(_NewToken(spec, quantizes), q_BTNH, *operands)


def _in_two_steps(backend, spec, q_BTNH, k_BTKH, v_BTKH, table, cache, starts_B, scales, rule):
    if scales is not None:
        heads = zip((q_BTNH, k_BTKH), scales, spec.epsilons)
        q_BTNH, k_BTKH = (rms_norm(*of_one) for of_one in heads)
    store = _store_in_cpp if backend == "cpp" else _store
    q_BTNH, cache = store(q_BTNH, k_BTKH, v_BTKH, table, spec.rope, cache, starts_B)
    return (attend(backend, q_BTNH, cache, starts_B, rule), None), cache


def _store(q_BTNH, k_BTKH, v_BTKH, table, rope, cache, starts_B):
    """Rotates queries and keys and writes keys and values, in plain XLA."""
    q_BTNH, k_BTKH = (apply_rope(heads, table, rope) for heads in (q_BTNH, k_BTKH))
    return q_BTNH, cache.write(k_BTKH, v_BTKH, starts_B)


def _store_in_cpp(q_BTNH, k_BTKH, v_BTKH, table, rope, cache, starts_B):
    return differentiable(_Store(rope), q_BTNH, k_BTKH, v_BTKH, table, cache, starts_B)


@dataclasses.dataclass(frozen=True)
class _Store:
    """`_store` in C++, in place where the cache is donated."""

    rope: RopeConfig

    def __call__(self, q_BTNH, k_BTKH, v_BTKH, table, cache, starts_B):
        (cos, sin), interleaved = table, self.rope.interleaved
        new, old = (q_BTNH, k_BTKH, v_BTKH), (cache.keys, cache.values)
        q_BTNH, keys, values = cpp.rotate_and_store(
            *new, cos, sin, *old, starts_B, interleaved=interleaved
        )
        return q_BTNH, KVState(keys, values)

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
        q_BNH, k, v, cos, sin = (a[:, 0] for a in (q_BTNH, k_BTKH, v_BTKH, *table))
        norms: Any = None if scales is None else (scales, self.spec.epsilons)
        new = NewTokens(k, v, cos, sin, self.spec.rope.interleaved, norms)
        mode = self.spec.numerics.activations if self.quantizes else None
        out, quantized, keys, values = pallas.attend_to_new_token(
            q_BNH, new, cache.keys, cache.values, starts_B, rule, mode
        )
        return (out[:, None], quantized), KVState(keys, values)

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
    T, K, S = (5 if several else 1), 2, 100
    shapes = [(1, T, K * group, width), (1, K, width, S), (1, K, S, width), *[(1, T, K, width)] * 2]
    random = [jax.random.normal(jax.random.key(i), shape, dtype) for i, shape in enumerate(shapes)]
    (q, keys, values, k, v), starts = random, jnp.array([70], jnp.int32)
    rule = AttentionRule(
        width**-0.5,
        causal="not causal" not in kind,
        window=37 if "window" in kind else None,
        soft_cap=2.0 if "soft cap" in kind else None,
        sinks_N=jnp.linspace(-1, 1, K * group) if "sinks" in kind else None,
    )
    operands = q, keys, values, starts, rule
    pairs = [(_Attend("pallas")(*operands), reference.prefill(*operands))]
    if not several:
        spec = NewTokensSpec(RopeConfig(width // 2 * 2), Numerics(), (1e-6, 1e-6))
        token = _NewToken(spec, quantizes=False)
        scales = jnp.full(width, 1.1), jnp.full(width, 0.9)
        table = rope_table(starts[:, None], spec.rope)
        operands = q, k, v, table, KVState(keys, values), starts, scales, rule
        found, exact = token(*operands), token.plain(*operands)
        pairs += zip(jax.tree.leaves(found), jax.tree.leaves(exact))

    def norm(a):
        return jnp.linalg.norm(a.astype(jnp.float32))

    return jnp.stack([norm(a - b) / norm(b) for a, b in pairs]).max()
