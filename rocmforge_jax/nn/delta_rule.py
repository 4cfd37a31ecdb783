"""The gated delta rule: linear attention that overwrites the value stored under a key.

Each head has a memory, a matrix that maps keys to values. For each token, the memory decays. Then
the value stored under the token's key moves by a share `beta` towards the token's value (Yang et
al., 2024, arXiv:2412.06464):

    memory = exp(log_decay) * memory
    memory = memory + key (beta * (value - key^T memory))^T
    output = query^T memory

A single token is computed by this step. Several tokens are computed in chunks, as matrix products.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from pallas_kernels.delta_rule.operands import Tokens
from rocmforge_jax.backends import Operation, choose, cpp, differentiable, pallas
from rocmforge_jax.backends.trials import relative_error
from rocmforge_jax.nn.chunks import (
    check_shapes,
    cut_into_chunks,
    decays,
    exact_einsum,
    joined_chunks,
    without_padding,
)
from rocmforge_jax.nn.recurrent_step import RecurrentStep

#: Tokens of a chunk, and of the diagonal blocks in which its triangular system is inverted.
CHUNK, BLOCK = 32, 16


def delta_rule(
    q_BTNH,
    k_BTNH,
    v_BTNW,
    log_decay_BTN,
    beta_BTN,
    memory_BNHW,
    lengths_B=None,
    *,
    exact: bool = True,
    backend: str | None = None,
):
    """Applies the gated delta rule to T tokens.

    Args:
        q_BTNH: Queries, scaled.
        k_BTNH: Keys, of length 1.
        v_BTNW: Values; their width W may differ from H.
        log_decay_BTN: The logarithm of the memory's decay factor, at most 0.
        beta_BTN: The share, 0 to 1, by which the memory moves towards the value.
        memory_BNHW: The memory after the earlier tokens. Donate it under `jax.jit`: a step updates
            it in place.
        lengths_B: int32, the number of real tokens of each sequence, default T. Padding never
            enters the memory.
        exact: Whether several tokens are computed in full float32. If not, the matrix units of an
            NVIDIA GPU may round the operands of products to 11 bits.
        backend: The backend. Default: the first one that supports the number of tokens.

    Returns:
        The outputs, float32 [B, T, N, W], and the new memory, float32.

    Raises:
        ValueError: Shapes do not fit.
    """
    _check(q_BTNH, k_BTNH, v_BTNW, log_decay_BTN, beta_BTN, memory_BNHW)
    tokens = tuple(a.astype(jnp.float32) for a in (q_BTNH, k_BTNH, v_BTNW, log_decay_BTN, beta_BTN))
    # A token without decay and with share 0 leaves the memory unchanged.
    tokens = Tokens(*tokens[:3], *(without_padding(a, lengths_B) for a in tokens[3:]))
    memory_BNHW = memory_BNHW.astype(jnp.float32)
    if q_BTNH.shape[1] > 1:
        return _several(tokens, memory_BNHW, exact, backend)
    out_BNW, memory_BNHW = STEP.on(backend, tuple(a[:, 0] for a in tokens), memory_BNHW)
    return out_BNW[:, None], memory_BNHW


def _check(q, k, v, log_decay, beta, memory) -> None:
    """Raises ValueError for an operand with a wrong shape."""
    (B, T, N, H), W = q.shape, v.shape[-1]
    expected = dict(k=(B, T, N, H), v=(B, T, N, W), log_decay=(B, T, N), beta=(B, T, N))
    expected["memory"] = (B, N, H, W)
    given = f"q is {[B, T, N, H]} and values are {W} wide"
    check_shapes(given, expected, (k, v, log_decay, beta, memory))


def delta_step(token, memory_BNHW):
    """Applies the rule to one token of each sequence.

    The output is computed from the old memory, so one read serves both key and query. A second
    read updates the memory in place.

    Args:
        token: float32 arrays q, k, v, log_decay and beta.
        memory_BNHW: The memory, float32.

    Returns:
        The output [B, N, W] and the new memory.
    """
    q_BNH, k_BNH, v_BNW, log_decay_BN, beta_BN = token
    decay_BN1 = jnp.exp(log_decay_BN)[..., None]
    both_BN2H = jnp.stack([k_BNH, q_BNH], axis=2)
    read_BN2W = exact_einsum("bnrh,bnhw->bnrw", both_BN2H, memory_BNHW) * decay_BN1[..., None]
    change_BNW = beta_BN[..., None] * (v_BNW - read_BN2W[:, :, 0])
    overlap_BN1 = jnp.sum(q_BNH * k_BNH, axis=-1, keepdims=True)
    memory_BNHW = decay_BN1[..., None] * memory_BNHW + k_BNH[..., None] * change_BNW[:, :, None]
    return read_BN2W[:, :, 1] + overlap_BN1 * change_BNW, memory_BNHW


STEP = RecurrentStep("delta rule", cpp.delta_step, delta_step)


def _several(tokens: Tokens, memory_BNHW, exact: bool, backend: str | None):
    """Applies the rule to several tokens of each sequence."""
    if choose(SEVERAL, (tokens, exact), backend).name == "pallas":
        return differentiable(_Kernels(exact), tokens, memory_BNHW)
    return _in_chunks(tokens, memory_BNHW)


def _check_pallas(tokens: Tokens, exact: bool) -> str:
    on = pallas.target()
    (B, T, N, H), W = tokens.k_BTNH.shape, tokens.v_BTNW.shape[-1]
    pallas.check_delta_rule((B, T, N, H, W))
    what = f"the delta rule with keys {H} and values {W} wide" + ", exact" * exact
    error = functools.partial(_trial_error, H, W, exact)
    pallas.require(what, error, 1e-5 if exact else 5e-3)
    return f"chunks of tokens in three launches, {on}"


SEVERAL = Operation("delta rule", {"pallas": _check_pallas}, fused=True)


@dataclasses.dataclass(frozen=True)
class _Kernels:
    """Several tokens as a function of arrays: in Pallas, and in plain XLA for gradients."""

    exact: bool

    def __call__(self, tokens: Tokens, memory_BNHW):
        return pallas.delta_rule(tokens, memory_BNHW, self.exact)

    def plain(self, tokens: Tokens, memory_BNHW):
        return _in_chunks(tokens, memory_BNHW)


def _trial_error(H: int, W: int, exact: bool) -> jax.Array:
    """Returns the largest relative error of the results for small random operands."""
    B, T, N = 2, 75, 2
    shapes = (B, T, N, H), (B, T, N, H), (B, T, N, W), (B, T, N), (B, T, N), (B, N, H, W)
    q, k, v, log_decay, beta, memory = (
        jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)
    )
    k /= jnp.linalg.norm(k, axis=-1, keepdims=True)
    operands = Tokens(q, k, v, -jnp.abs(log_decay), jax.nn.sigmoid(beta)), memory
    kernels = _Kernels(exact)
    return relative_error(kernels(*operands), kernels.plain(*operands))


def _in_chunks(tokens, memory_BNHW):
    """Applies the rule to several tokens, chunk by chunk."""
    T = tokens[-1].shape[1]
    chunk = min(CHUNK, -(-T // BLOCK) * BLOCK)
    cut = tuple(cut_into_chunks(token, chunk) for token in tokens)
    # The temporaries of one chunk fit into a CPU's cache, those of all chunks would not.
    memory_BNHW, out = jax.lax.scan(_chunk, memory_BNHW, cut)
    return joined_chunks(out, T), memory_BNHW


def _chunk(memory_BNHW, tokens):
    """Applies the rule to the C tokens of a chunk; returns the new memory and the outputs.

    The tokens' changes of the memory depend on one another through the keys. They solve a unit
    lower triangular system of C equations, the WY form of a product of Householder-like matrices.
    """
    q_BNCH, k_BNCH, v_BNCW, log_decay_BNC, beta_BNC = tokens
    since_start_BNC, between_BNCC = decays(log_decay_BNC)
    scaled_BNCH = k_BNCH * beta_BNC[..., None]
    overlaps_BNCC = exact_einsum("bnch,bndh->bncd", scaled_BNCH, k_BNCH) * between_BNCC
    held_BNCW = exact_einsum(
        "bnch,bnhw->bncw", scaled_BNCH * since_start_BNC[..., None], memory_BNHW
    )
    changes_BNCW = _solve(overlaps_BNCC, v_BNCW * beta_BNC[..., None] - held_BNCW)
    scores_BNCC = exact_einsum("bnch,bndh->bncd", q_BNCH, k_BNCH) * between_BNCC
    out_BNCW = exact_einsum(
        "bnch,bnhw->bncw", q_BNCH * since_start_BNC[..., None], memory_BNHW
    ) + exact_einsum("bncd,bndw->bncw", scores_BNCC, changes_BNCW)
    until_end_BNCH = k_BNCH * between_BNCC[..., -1, :, None]
    memory_BNHW = since_start_BNC[..., -1, None, None] * memory_BNHW + exact_einsum(
        "bnch,bncw->bnhw", until_end_BNCH, changes_BNCW
    )
    return memory_BNHW, out_BNCW


def _solve(matrix_BNCC, right_BNCW):
    """Solves (1 + strictly lower part of the matrix) x = right.

    Diagonal blocks are inverted by matrix products, then blocks are eliminated one after another.
    LAPACK would need more time for such small systems than the rest of a chunk.
    """
    *batch, C, _ = matrix_BNCC.shape
    blocks = C // BLOCK
    cut = matrix_BNCC.reshape(*batch, blocks, BLOCK, blocks, BLOCK)
    inverse = _inverse(jnp.stack([cut[..., i, :, i, :] for i in range(blocks)], axis=2))
    solved = exact_einsum("bncd,bndw->bncw", inverse[:, :, 0], right_BNCW[:, :, :BLOCK])
    for i in range(1, blocks):
        rows = slice(i * BLOCK, (i + 1) * BLOCK)
        known = exact_einsum("bncd,bndw->bncw", matrix_BNCC[:, :, rows, : i * BLOCK], solved)
        new = exact_einsum("bncd,bndw->bncw", inverse[:, :, i], right_BNCW[:, :, rows] - known)
        solved = jnp.concatenate([solved, new], axis=2)
    return solved


def _inverse(blocks_BNICC):
    """Inverts 1 + m as (1 - m)(1 + m^2)(1 + m^4)..., m the strictly lower part: m^BLOCK is 0."""
    power = -jnp.tril(blocks_BNICC, -1)
    inverse = jnp.eye(BLOCK, dtype=jnp.float32)[None, None, None] + power
    for _ in range(BLOCK.bit_length() - 2):
        power = exact_einsum("bnicd,bnide->bnice", power, power)
        inverse = inverse + exact_einsum("bnicd,bnide->bnice", power, inverse)
    return inverse
