"""Helpers of the recurrences that process a text in chunks of tokens."""

import jax
import jax.numpy as jnp


def check_shapes(given: str, expected: dict[str, tuple[int, ...]], operands) -> None:
    """Raises ValueError, with both shapes, for the first operand that does not fit.

    Args:
        given: The sizes from which the shapes follow, as text for the error message.
        expected: Name of an operand -> its shape.
        operands: The operands, in the order of `expected`.
    """
    for (name, shape), operand in zip(expected.items(), operands, strict=True):
        if operand.shape != shape:
            raise ValueError(f"{given}: {name} must be {list(shape)}, got {list(operand.shape)}")


def without_padding(a_BTN, lengths_B):
    """Sets the tokens from lengths_B on to zero, [B, T, N]; None: all tokens are real."""
    if lengths_B is None:
        return a_BTN
    is_real_BT = jnp.arange(a_BTN.shape[1], dtype=jnp.int32)[None] < lengths_B[:, None]
    return jnp.where(is_real_BT[..., None], a_BTN, 0)


def cut_into_chunks(a_BTN, chunk: int):
    """Cuts [B, T, N, ...] into chunks of C tokens, padded with zeros: [chunks, B, N, C, ...]."""
    B, T = a_BTN.shape[:2]
    count = -(-T // chunk)
    padding = [(0, 0), (0, count * chunk - T)] + [(0, 0)] * (a_BTN.ndim - 2)
    a = jnp.pad(a_BTN, padding).reshape(B, count, chunk, *a_BTN.shape[2:])
    return jnp.moveaxis(a, (1, 3), (0, 2))


def joined_chunks(chunks, tokens: int):
    """Joins [chunks, B, N, C, ...] to [B, T, N, ...], without the padding."""
    count, B, N, C = chunks.shape[:4]
    a = jnp.moveaxis(chunks, (0, 2), (1, 3)).reshape(B, count * C, N, *chunks.shape[4:])
    return a[:, :tokens]


def decays(log_decay_BNC):
    """Returns the decay from the start of a chunk to each token, and between any two tokens.

    Each logarithm is summed separately. A difference of two sums from the start would lose digits
    after tokens with a strong decay.

    Returns:
        The decay since the start [B, N, C], and the decay between tokens [B, N, C, C]. Element
        [..., c, d] is the decay from token d to token c, 0 if d is later than c.
    """
    C = log_decay_BNC.shape[-1]
    lower_CC = jnp.tril(jnp.ones((C, C), jnp.float32))
    after_BNCC = jnp.tril(jnp.broadcast_to(log_decay_BNC[..., None], (*log_decay_BNC.shape, C)), -1)
    between_BNCC = jnp.exp(exact_einsum("ce,bned->bncd", lower_CC, after_BNCC))
    since_start_BNC = jnp.exp(exact_einsum("ce,bne->bnc", lower_CC, log_decay_BNC))
    return since_start_BNC, jnp.tril(between_BNCC)


def exact_einsum(axes: str, a, b):
    """Computes an einsum in full float32; by default, GPUs round the operands to fewer bits."""
    return jnp.einsum(axes, a, b, precision=jax.lax.Precision.HIGHEST)
