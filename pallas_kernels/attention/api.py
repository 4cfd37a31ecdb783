"""Attention over a key/value cache: the operands are checked, then an implementation is run.

Axes: B batch, T new tokens, N query heads, K key/value heads, H head width, S slots. Query head n
reads KV head n // (N / K). Implementations: "triton", the kernels; "xla", plain jnp for any device,
which does what the kernels refuse with NotImplementedError.
"""

import jax.numpy as jnp

from pallas_kernels.attention import checks, decode, prefill, reference
from pallas_kernels.attention.blocks import DECODE, PREFILL, Blocks, chosen
from pallas_kernels.attention.decode import NewTokens
from pallas_kernels.attention.rule import Scoring
from pallas_kernels.packing import GROUP
from pallas_kernels.targets import Target


def decode_attention(
    q_BNH,
    keys_BKHS,
    values_BKSH,
    lengths_B,
    *,
    scale: float,
    target: Target | None,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks_N=None,
    implementation: str = "triton",
    blocks: Blocks | None = None,
    activations: str | None = None,
    new: NewTokens | None = None,
):
    """softmax(scale * q k) v for one query a sequence, at position lengths_B[b] - 1 -> [B, N, H] in
    q's dtype.

    lengths_B: integers, filled slots, the query's own included, 0 to S; a sequence of length 0 gets
    zeros. window: slots a query sees, its own included. soft_cap: scores become cap * tanh(score /
    cap). sinks_N: logits that take a share of the weights and have no value. Operands of products
    are in the cache's dtype, sums and softmax in float32. What unfilled slots hold never counts in
    "triton" and must be finite in "xla". target: what the kernels are compiled for. blocks: their
    sizes, unless those of the target.

    Of the kernels alone: activations, a mode of `qmatmul.activations`, gives the pair of the result
    and the Activations of its rows [B, N * H]. new: the queries' own tokens are not in the cache
    yet, and neither they nor the queries are normed or rotated; the result comes with the caches
    that hold them, in place where these are donated: (result, keys, values).
    """
    checks.check_operands(
        q_BNH, keys_BKHS, values_BKSH, lengths_B, sinks_N, names=("q_BNH", "lengths_B")
    )
    operands = (
        q_BNH,
        keys_BKHS,
        values_BKSH,
        lengths_B.astype(jnp.int32),
        _float32(sinks_N),
        _scoring(scale, window, soft_cap),
    )
    if not _kernels_wanted(implementation):
        if activations is not None or new is not None:
            raise NotImplementedError("only the kernels give Activations and take new tokens")
        return reference.decode(*operands)
    checks.require_kernels(target, q_BNH, keys_BKHS, values_BKSH)
    if new is not None:
        new = checks.checked_new_tokens(new, keys_BKHS.shape)
    blocks = blocks or chosen(DECODE, target, keys_BKHS.dtype.itemsize, keys_BKHS.shape[2])
    splits = decode.split_count(
        values_BKSH.shape, q_BNH.shape[1] // keys_BKHS.shape[1], window, blocks
    )
    checks.require_fits("the partial sums", (*q_BNH.shape, splits))
    if activations is not None and q_BNH.shape[-1] % GROUP:
        raise NotImplementedError(
            f"heads of {q_BNH.shape[-1]}, only multiples of {GROUP} can be quantised"
        )
    return decode.decode(*operands, blocks, target, activations, new)


def prefill_attention(
    q_BTNH,
    keys_BKHS,
    values_BKSH,
    starts_B,
    *,
    scale: float,
    target: Target | None,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks_N=None,
    implementation: str = "triton",
    blocks: Blocks | None = None,
):
    """Causal attention of T new tokens, whose keys and values the cache holds already -> [B, T, N,
    H] in q's dtype.

    starts_B: integers, the slot of each sequence's first new token: token t is at position
    starts_B[b] + t and sees the slots up to there. One at a negative position sees none and gets
    zeros. The rest is as in `decode_attention`.
    """
    checks.check_operands(
        q_BTNH, keys_BKHS, values_BKSH, starts_B, sinks_N, names=("q_BTNH", "starts_B")
    )
    operands = (
        q_BTNH,
        keys_BKHS,
        values_BKSH,
        starts_B.astype(jnp.int32),
        _float32(sinks_N),
        _scoring(scale, window, soft_cap),
    )
    if not _kernels_wanted(implementation):
        return reference.prefill(*operands)
    checks.require_kernels(target, q_BTNH, keys_BKHS, values_BKSH)
    blocks = blocks or chosen(PREFILL, target, keys_BKHS.dtype.itemsize, keys_BKHS.shape[2])
    return prefill.prefill(*operands, blocks, target)


def _scoring(scale, window, soft_cap):
    scoring = Scoring(scale, window, soft_cap)
    checks.check_scoring(scoring)
    return scoring


def _float32(sinks_N):
    return None if sinks_N is None else sinks_N.astype(jnp.float32)


def _kernels_wanted(implementation):
    if implementation not in ("triton", "xla"):
        raise ValueError(f'implementation must be "triton" or "xla", got {implementation!r}')
    return implementation == "triton"
