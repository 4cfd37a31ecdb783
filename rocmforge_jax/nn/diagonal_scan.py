"""The selective state space of Mamba: each channel has a memory of a few numbers.

For each token, every number decays at its own rate. The token writes along a direction b and reads
along a direction c; all channels share both (Gu and Dao, 2023, arXiv:2312.00752):

    memory = exp(dt * a) * memory + (dt * x) b
    output = memory c + d * x

Several tokens are computed in chunks, each chunk by an associative scan.
"""

import jax
import jax.numpy as jnp

from rocmforge_jax.nn.chunks import check_shapes, exact_einsum, without_padding

#: Tokens of a chunk. The temporaries hold one memory per token of a chunk.
CHUNK = 16


def diagonal_scan(x_BTN, dt_BTN, a_NW, b_BTW, c_BTW, d_N, memory_BNW, lengths_B=None):
    """Applies a state space with N channels of W numbers to T tokens.

    Args:
        x_BTN: The inputs.
        dt_BTN: The time step of each token, at least 0. 0 leaves the memory unchanged.
        a_NW: The rates, below 0 for a decay.
        b_BTW: The directions along which tokens are written.
        c_BTW: The directions along which the memory is read.
        d_N: The factor of x in the output (a skip connection).
        memory_BNW: The memory after the earlier tokens.
        lengths_B: int32, the number of real tokens of each sequence, default T. Padding never
            enters the memory.

    Returns:
        The outputs, float32 [B, T, N], and the new memory, float32.

    Raises:
        ValueError: Shapes do not fit.
    """
    (B, T, N), W = x_BTN.shape, b_BTW.shape[-1]
    expected = dict(dt=(B, T, N), a=(N, W), b=(B, T, W), c=(B, T, W), d=(N,), memory=(B, N, W))
    operands = dt_BTN, a_NW, b_BTW, c_BTW, d_N, memory_BNW
    check_shapes(f"x is {[B, T, N]} and b ends with {W}", expected, operands)
    x, dt, a, b, c, d, memory = (part.astype(jnp.float32) for part in (x_BTN, *operands))
    dt = without_padding(dt, lengths_B)

    def chunk(memory_BNW, tokens):
        written, dt, b, c = tokens
        decay_BCNW = jnp.exp(dt[..., None] * a[None, None])
        added_BCNW = written[..., None] * b[:, :, None]
        # The scan starts from zero, so the first token also adds the decayed earlier memory.
        added_BCNW = added_BCNW.at[:, 0].add(decay_BCNW[:, 0] * memory_BNW)
        _, memories = jax.lax.associative_scan(_combine, (decay_BCNW, added_BCNW), axis=1)
        return memories[:, -1], exact_einsum("bcnw,bcw->bcn", memories, c)

    tokens = tuple(_cut(part, min(CHUNK, T)) for part in (x * dt, dt, b, c))
    memory, out = jax.lax.scan(chunk, memory, tokens)
    out = jnp.moveaxis(out, 0, 1).reshape(B, -1, N)[:, :T]
    return out + d[None, None] * x, memory


def _combine(first, then):
    """Combines the effects of two runs of tokens on a memory, each a (decay, addition) pair."""
    return first[0] * then[0], then[0] * first[1] + then[1]


def _cut(a_BTN, chunk: int):
    """Cuts [B, T, N] into chunks, padded with zeros: [chunks, B, C, N]."""
    B, T, N = a_BTN.shape
    padded = jnp.pad(a_BTN, ((0, 0), (0, -T % chunk), (0, 0)))
    return jnp.moveaxis(padded.reshape(B, -1, chunk, N), 1, 0)
