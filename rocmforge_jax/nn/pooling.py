"""Pooling: combines the states of a text's tokens into one vector."""

import jax.numpy as jnp

#: The names of the values 0, 1, 2, ... of `pooling_type` in a file.
POOLINGS = ("none", "mean", "cls", "last", "rank")


def pool(states_BTD, lengths_B=None, kind: str = "mean"):
    """Pools the states of each text into one vector.

    Args:
        states_BTD: The states of the tokens, for example from `Decoder.hidden`.
        lengths_B: Integers: the number of real tokens of each text, before its padding. Default:
            all T are real.
        kind: "mean" for the mean of all tokens, "cls" for the first token, "last" for the last
            one, or "none" for no pooling.

    Returns:
        The vectors, float32 [B, D]; zeros for a text without tokens. With "none", the states,
        float32 [B, T, D]; zeros for padding.

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
    # A product with 0 or 1 would not do: padding may contain NaN.
    states_BTD = jnp.where(real_BT1, states_BTD.astype(jnp.float32), 0)
    if kind == "none":
        return states_BTD
    if kind == "mean":
        return states_BTD.sum(axis=1) / jnp.maximum(lengths_B, 1).astype(jnp.float32)[:, None]
    at_B = jnp.zeros_like(lengths_B) if kind == "cls" else jnp.maximum(lengths_B - 1, 0)
    return jnp.take_along_axis(states_BTD, at_B[:, None, None], axis=1)[:, 0]
