"""Pooling: the states of a text's tokens become one vector."""

import jax.numpy as jnp

#: The values of `pooling_type` in a file, by number.
POOLINGS = ("none", "mean", "cls", "last", "rank")


def pool(states_BTD, lengths_B=None, kind: str = "mean"):
    """Pools the states of each text, float32 [B, D].

    Args:
        states_BTD: The states of the tokens, such as `Decoder.hidden` returns.
        lengths_B: Integers: how many of the T tokens of each text are real. The first ones are, the
            rest is padding. Default: all.
        kind: "mean" of all tokens, "cls" for the first token, "last" for the last one, or "none"
            for the states as they are [B, T, D], zeros for padding.

    Returns:
        The vectors; zeros for a text without tokens.

    Raises:
        ValueError: The kind is unknown, or shapes do not fit.
    """
    if kind not in POOLINGS[:4]:
        raise ValueError(f"pooling must be {', '.join(POOLINGS[:4])}, got {kind!r}")
    if states_BTD.ndim != 3:
        raise ValueError(f"states must be [batch, tokens, width], got {list(states_BTD.shape)}")
    B, T, _ = states_BTD.shape
    if lengths_B is None:
        lengths_B = jnp.full((B,), T, jnp.int32)
    lengths_B = jnp.asarray(lengths_B)
    if lengths_B.shape != (B,) or not jnp.issubdtype(lengths_B.dtype, jnp.integer):
        raise ValueError(
            f"lengths must be integers {[B]}, got {lengths_B.dtype} {list(lengths_B.shape)}"
        )
    lengths_B = lengths_B.astype(jnp.int32)
    real_BT1 = (jnp.arange(T, dtype=jnp.int32)[None] < lengths_B[:, None])[..., None]
    # Not a product with 0 or 1: padding may hold anything.
    states_BTD = jnp.where(real_BT1, states_BTD.astype(jnp.float32), 0)
    if kind == "none":
        return states_BTD
    if kind == "mean":
        return states_BTD.sum(axis=1) / jnp.maximum(lengths_B, 1).astype(jnp.float32)[:, None]
    at_B = jnp.zeros_like(lengths_B) if kind == "cls" else jnp.maximum(lengths_B - 1, 0)
    return jnp.take_along_axis(states_BTD, at_B[:, None, None], axis=1)[:, 0]
