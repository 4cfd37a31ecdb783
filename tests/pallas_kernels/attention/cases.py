"""Attention in float64, and both backends as jitted functions."""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention import (
    AttentionRule,
    decode_attention,
    prefill_attention,
    reference,
)
from pallas_kernels.attention.blocks import Blocks
from tests.pallas_kernels.conftest import TARGET

#: The kernels, and the plain reference.
BACKENDS = ("pallas", "xla")
#: Blocks of 16 slots and 16 rows: small shapes have many of both.
SMALL = Blocks(slots=16, rows=16, threads=64, programs=24)
#: Rules but for their scale; `sinks` stands for sinks as large as scores, so that they matter.
OPTIONS = {
    "plain": {},
    "window-1": dict(window=1),
    "window-20": dict(window=20),
    "soft-cap": dict(soft_cap=2.0),
    "all": dict(window=33, soft_cap=5.0, sinks=True),
    "sinks": dict(sinks=True),
    "not-causal": dict(causal=False),
    "not-causal-all": dict(causal=False, soft_cap=5.0, sinks=True),
    "both-sides": dict(causal=False, window=21),
    "both-sides-all": dict(causal=False, window=7, soft_cap=5.0, sinks=True),
}

decode_jit = jax.jit(decode_attention, static_argnames=("target", "blocks"))
prefill_jit = jax.jit(prefill_attention, static_argnames=("target", "blocks"))
_decode_reference = jax.jit(reference.decode)
_prefill_reference = jax.jit(reference.prefill)


def rule_of(name, scale, N, normal) -> AttentionRule:
    """The rule of OPTIONS with that name, for N heads."""
    options = dict(OPTIONS[name])
    if options.pop("sinks", False):
        options["sinks_N"] = 2 * normal(N, seed=4)
    return AttentionRule(scale, **options)


def decoded(backend, q, keys, values, lengths, rule, blocks=SMALL):
    """Attention of the one token of q [B, 1, N, H]."""
    operands = q[:, 0], keys, values, jnp.int32(lengths), rule
    if backend == "xla":
        return _decode_reference(*operands)[:, None]
    return decode_jit(*operands, target=TARGET, blocks=blocks)[:, None]


def prefilled(backend, q, keys, values, starts, rule, blocks=SMALL, filled=None):
    """Attention of the tokens of q [B, T, N, H]."""
    operands = q, keys, values, jnp.int32(starts), rule
    filled_B = None if filled is None else jnp.int32(filled)
    if backend == "xla":
        return _prefill_reference(*operands, filled_B=filled_B)
    return prefill_jit(*operands, target=TARGET, blocks=blocks, filled_B=filled_B)


def truth(q_BTNH, keys_BKHS, values_BKSH, starts, rule, filled=None):
    """[B, T, N, H] in float64: one query after the other.

    Query t of sequence b is at slot starts[b] + t, of which filled[b] hold tokens, default
    starts[b] + T.
    """
    q, keys, values = (np.asarray(x).astype(np.float64) for x in (q_BTNH, keys_BKHS, values_BKSH))
    (B, T, N, _), K, out = q.shape, keys.shape[1], np.zeros(q.shape)
    for b, t, n in np.ndindex(B, T, N):
        own, end = int(starts[b]) + t, int(starts[b]) + T if filled is None else filled[b]
        before, after = (rule.window or 10**9) - 1, 0
        if not rule.causal:
            before, after = before // 2, (before + 1) // 2
        last = min(own + after, end - 1)
        seen = slice(max(0, own - before), max(0, last + 1))
        scores = rule.scale * q[b, t, n] @ keys[b, n // (N // K), :, seen]
        if rule.soft_cap is not None:
            scores = rule.soft_cap * np.tanh(scores / rule.soft_cap)
        logits = scores
        if rule.sinks_N is not None:
            logits = np.append(scores, np.float64(rule.sinks_N[n]))
        if scores.size:
            weights = np.exp(scores - logits.max())
            total = np.exp(logits - logits.max()).sum()
            out[b, t, n] = weights / total @ values[b, n // (N // K), seen]
    return out


def shapes(*, q=(2, 4, 64), keys=(2, 2, 64, 32), values=(2, 2, 32, 64), at=(2,), dtype=jnp.float32):
    """Abstract operands of decode."""
    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape in (q, keys, values)]
    return [*arrays, jax.ShapeDtypeStruct(at, jnp.int32)]
