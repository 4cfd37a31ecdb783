"""The selective state space of Mamba 2.

Each head has a memory, a matrix of head width by state width. For each token, the memory decays.
The token then writes its input along a direction b and reads along a direction c (Dao and Gu, 2024,
arXiv:2405.21060):

    memory = exp(dt * a) * memory + (dt * x) b^T
    output = memory c + d * x

A single token is computed by this step. Several tokens are computed in chunks, as matrix products.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from pallas_kernels.selective_scan.operands import Tokens
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

#: Tokens of a chunk.
CHUNK = 32


def selective_scan(
    x_BTNH,
    dt_BTN,
    a_N,
    b_BTKW,
    c_BTKW,
    d_N,
    memory_BNHW,
    lengths_B=None,
    *,
    exact: bool = True,
    backend: str | None = None,
):
    """Applies a selective state space to T tokens.

    Args:
        x_BTNH: The inputs of N heads.
        dt_BTN: The time step of each token, at least 0. 0 leaves the memory unchanged.
        a_N: The rate of the memory, below 0 for a decay.
        b_BTKW: The directions along which tokens are written. N / K consecutive heads share one.
        c_BTKW: The directions along which the memory is read, shared like `b_BTKW`.
        d_N: The factor of x in the output (a skip connection).
        memory_BNHW: The memory after the earlier tokens. Donate it under `jax.jit`: a step updates
            it in place.
        lengths_B: int32, the number of real tokens of each sequence, default T. Padding never
            enters the memory.
        exact: Whether several tokens are computed in full float32. If not, the matrix units of an
            NVIDIA GPU may round the operands of products to 11 bits.
        backend: The backend. Default: the first one that supports the number of tokens.

    Returns:
        The outputs, float32 [B, T, N, H], and the new memory, float32.

    Raises:
        ValueError: Shapes do not fit.
    """
    _check(x_BTNH, dt_BTN, a_N, b_BTKW, c_BTKW, d_N, memory_BNHW)
    operands = x_BTNH, dt_BTN, a_N, b_BTKW, c_BTKW, d_N, memory_BNHW
    x, dt, a, b, c, d, memory = (operand.astype(jnp.float32) for operand in operands)
    tokens = Tokens(x, without_padding(dt, lengths_B), b, c)
    if x.shape[1] > 1:
        if choose(SEVERAL, (tokens, exact), backend).name == "pallas":
            return differentiable(_Kernels(exact), tokens, a, d, memory)
        return _in_chunks(tokens, a, d, memory)
    token = tuple(array[:, 0] for array in _weighted(tokens, a))
    out, memory = STEP.on(backend, token, memory)
    return out[:, None] + d[None, None, :, None] * x, memory


def _check(x, dt, a, b, c, d, memory) -> None:
    """Raises ValueError for an operand with a wrong shape."""
    (B, T, N, H), (K, W) = x.shape, b.shape[-2:]
    if N % K:
        raise ValueError(f"{N} heads share {K} directions: heads must be a multiple of directions")
    expected = dict(dt=(B, T, N), a=(N,), b=(B, T, K, W), c=(B, T, K, W), d=(N,))
    expected["memory"] = (B, N, H, W)
    given = f"x is {[B, T, N, H]} and b ends with {[K, W]}"
    check_shapes(given, expected, (dt, a, b, c, d, memory))


def _step(token, memory_BNHW):
    """Computes one token of each sequence; returns the outputs without d, and the new memory.

    The outputs are a product (einsum) with the new memory. On XLA:CPU, a sum of elementwise
    products would be slower, and a product with the old memory would copy the memory.
    """
    x_BNH, log_decay_BN, *directions = token
    shared = x_BNH.shape[1] // directions[0].shape[1]
    b_BNW, c_BNW = (jnp.repeat(part, shared, axis=1) for part in directions)
    decay_BN11 = jnp.exp(log_decay_BN)[..., None, None]
    memory_BNHW = decay_BN11 * memory_BNHW + x_BNH[..., None] * b_BNW[:, :, None]
    return exact_einsum("bnhw,bnw->bnh", memory_BNHW, c_BNW), memory_BNHW


STEP = RecurrentStep("state space", cpp.scan_step, _step)


def _check_pallas(tokens: Tokens, exact: bool) -> str:
    on = pallas.target()
    (B, T, N, H), W = tokens.x_BTNH.shape, tokens.b_BTKW.shape[-1]
    pallas.check_selective_scan((B, T, N, H, W))
    what = f"the state space with heads {H} and states {W} wide" + ", exact" * exact
    error = functools.partial(_trial_error, H, W, exact)
    pallas.require(what, error, 1e-5 if exact else 5e-3)
    return f"chunks of tokens in three launches, {on}"


SEVERAL = Operation("state space", {"pallas": _check_pallas}, fused=True)


@dataclasses.dataclass(frozen=True)
class _Kernels:
    """Several tokens as a function of arrays: in Pallas, and in plain XLA for gradients."""

    exact: bool

    def __call__(self, tokens: Tokens, a_N, d_N, memory_BNHW):
        return pallas.selective_scan(tokens, a_N, d_N, memory_BNHW, self.exact)

    def plain(self, tokens: Tokens, a_N, d_N, memory_BNHW):
        return _in_chunks(tokens, a_N, d_N, memory_BNHW)


def _trial_error(H: int, W: int, exact: bool) -> jax.Array:
    """Returns the largest relative error of the results for small random operands."""
    B, T, N, K = 2, 75, 4, 2
    shapes = (B, T, N, H), (B, T, N), (B, T, K, W), (B, T, K, W), (N,), (N,), (B, N, H, W)
    x, dt, b, c, a, d, memory = (
        jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)
    )
    operands = Tokens(x, jax.nn.softplus(dt), b, c), -jnp.exp(a), d, memory
    kernels = _Kernels(exact)
    return relative_error(kernels(*operands), kernels.plain(*operands))


def _weighted(tokens: Tokens, a_N) -> tuple[jax.Array, ...]:
    """Returns what a token writes, its log decay, and its directions."""
    x, dt, b, c = tokens
    return x * dt[..., None], dt * a_N[None, None], b, c


def _in_chunks(tokens: Tokens, a_N, d_N, memory_BNHW):
    """Applies the state space to several tokens, chunk by chunk."""
    T = tokens.x_BTNH.shape[1]
    # The temporaries of one chunk fit into a CPU's cache, those of all chunks would not.
    cut = tuple(cut_into_chunks(array, min(CHUNK, T)) for array in _weighted(tokens, a_N))
    memory_BNHW, chunks = jax.lax.scan(_chunk, memory_BNHW, cut)
    out = joined_chunks(chunks, T)
    return out + d_N[None, None, :, None] * tokens.x_BTNH, memory_BNHW


def _chunk(memory_BNHW, tokens):
    """Computes the C tokens of a chunk; returns the new memory and the outputs without d."""
    x_BNCH, log_decay_BNC, b_BKCW, c_BKCW = tokens
    (B, N, H, W), (K, C) = memory_BNHW.shape, b_BKCW.shape[1:3]
    since_start_BNC, between_BNCC = decays(log_decay_BNC)
    scores_BKCC = exact_einsum("bkcw,bkdw->bkcd", c_BKCW, b_BKCW)
    scores_BNCC = jnp.repeat(scores_BKCC, N // K, axis=1) * between_BNCC
    read = exact_einsum("bkcw,bkrw->bkrc", c_BKCW, memory_BNHW.reshape(B, K, -1, W))
    read_BNCH = jnp.swapaxes(read.reshape(B, N, H, C), 2, 3)
    out_BNCH = since_start_BNC[..., None] * read_BNCH + exact_einsum(
        "bncd,bndh->bnch", scores_BNCC, x_BNCH
    )
    until_end_BNCH = x_BNCH * between_BNCC[..., -1, :, None]
    of_groups = jnp.swapaxes(until_end_BNCH, 2, 3).reshape(B, K, -1, C)
    written = exact_einsum("bkrc,bkcw->bkrw", of_groups, b_BKCW).reshape(B, N, H, W)
    return since_start_BNC[..., -1, None, None] * memory_BNHW + written, out_BNCH
