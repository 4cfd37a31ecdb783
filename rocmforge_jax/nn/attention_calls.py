"""Attention over a KV cache, computed by one backend."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from pallas_kernels.attention import AttentionRule, NewTokens, reference
from pallas_kernels.packing import GROUP
from pallas_kernels.qmatmul.activations import quantize_reference
from rocmforge_jax.backends import Numerics, cpp, differentiable, pallas
from rocmforge_jax.nn.kv_state import KVState
from rocmforge_jax.nn.norm import rms_norm
from rocmforge_jax.nn.ring import rolled_up, unrolled
from rocmforge_jax.nn.rope import RopeConfig, apply_rope


@dataclasses.dataclass(frozen=True)
class NewTokensSpec:
    """How new tokens are prepared for attention, and how its result is quantised.

    Attributes:
        rope: Which elements of a head rotate, or None.
        numerics: The backend, and the mode in which the result is quantised for the next product.
        epsilons: The epsilons of the norms of queries and keys, or None without norms.
    """

    rope: RopeConfig | None
    numerics: Numerics
    epsilons: tuple[float, float] | None = None


def attend(backend: str, q_BTNH, cache: KVState, starts_B, rule: AttentionRule, filled_B=None):
    """Computes attention of tokens that are already in the cache, on one backend."""
    operands = q_BTNH, cache.keys, cache.values, starts_B, rule, filled_B
    on_backend = Attend(backend, cache.wraps)
    return (
        on_backend.plain(*operands) if backend == "xla" else differentiable(on_backend, *operands)
    )


@dataclasses.dataclass(frozen=True)
class Attend:
    """Attention as a function of arrays: on a backend, and in plain XLA for gradients.

    Attributes:
        backend: "pallas" or "cpp".
        ring: Whether the slots are a ring buffer.
    """

    backend: str
    ring: bool = False

    def __call__(self, q, keys, values, starts_B, rule, filled_B=None):
        """Computes attention on the backend."""
        attend = cpp.attend if self.backend == "cpp" else pallas.attend
        return attend(q, keys, values, starts_B, rule, self.ring, filled_B)

    def plain(self, q, keys, values, starts_B, rule, filled_B=None):
        """Computes the same in plain XLA."""
        return reference.prefill(q, keys, values, starts_B, rule, self.ring, filled_B)


def attend_to_new(
    backend: str, spec: NewTokensSpec, q, k, v, table, cache, starts_B, lengths_B, scales, rule
):
    """Writes new tokens into the cache and computes their attention, on one backend.

    Returns:
        ((attention [B, T, N, H], its Activations or None), cache).
    """
    (B, T, _, H), operands = q.shape, (q, k, v, table, cache, starts_B, scales, rule)
    if T > 1 and cache.wraps:
        return _with_ring(backend, spec, lengths_B, *operands)
    if T > 1 or backend != "pallas":
        return _in_two_steps(backend, spec, *operands)
    quantizes = B <= pallas.gemv_rows(q.dtype) and H % GROUP == 0
    return differentiable(NewToken(spec, quantizes), *operands)


def _with_ring(backend, spec, lengths_B, q, k, v, table, ring, starts_B, scales, rule):
    """Computes attention of several new tokens over an unrolled copy of a ring buffer."""
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
    put = _store_in_cpp if backend == "cpp" else store
    q_BTNH, cache = put(q_BTNH, k_BTKH, v_BTKH, table, spec.rope, cache, starts_B)
    return (attend(backend, q_BTNH, cache, starts_B, rule), None), cache


def rotated(heads_BTNH, table, rope: RopeConfig | None):
    """Rotates heads with `apply_rope`; without a rope, returns them unchanged."""
    return heads_BTNH if rope is None else apply_rope(heads_BTNH, table, rope)


def store(q_BTNH, k_BTKH, v_BTKH, table, rope, cache, starts_B):
    """Rotates queries and keys and writes keys and values into the cache, in plain XLA."""
    q_BTNH, k_BTKH = (rotated(heads, table, rope) for heads in (q_BTNH, k_BTKH))
    return q_BTNH, cache.write(k_BTKH, v_BTKH, starts_B)


def _store_in_cpp(q_BTNH, k_BTKH, v_BTKH, table, rope, cache, starts_B):
    return differentiable(_Store(rope), q_BTNH, k_BTKH, v_BTKH, table, cache, starts_B)


@dataclasses.dataclass(frozen=True)
class _Store:
    """`store` in C++, which writes in place if the cache is donated."""

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
        return store(q_BTNH, k_BTKH, v_BTKH, table, self.rope, cache, starts_B)


@dataclasses.dataclass(frozen=True)
class NewToken:
    """Attention of one new token per sequence: in Pallas, and in plain XLA for gradients.

    Attributes:
        spec: How the token is prepared.
        quantizes: Whether the kernel also returns Activations for the next product.
    """

    spec: NewTokensSpec
    quantizes: bool

    def __call__(self, q_BTNH, k_BTKH, v_BTKH, table, cache, starts_B, scales, rule):
        """Returns ((attention [B, 1, N, H], its Activations or None), cache)."""
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
        """Computes the same in plain XLA."""
        (out, _), cache = _in_two_steps("xla", self.spec, *operands)
        if not self.quantizes:
            return (out, None), cache
        mode = self.spec.numerics.activations
        return (out, quantize_reference(out.reshape(len(out), -1), mode)), cache
