"""Operands of attention."""

import jax.numpy as jnp
import pytest


@pytest.fixture
def operands(normal):
    """(B, T, N, K, H, S, dtype) -> q [B, T, N, H] in float32, which dtype holds exactly, and keys
    and values in dtype.
    """

    def make(B, T, N, K, H, S, dtype=jnp.float32):
        def narrow(*shape, seed):
            return jnp.asarray(normal(*shape, seed=seed), dtype)

        return (
            narrow(B, T, N, H, seed=1).astype(jnp.float32),
            narrow(B, K, H, S, seed=2),
            narrow(B, K, S, H, seed=3),
        )

    return make
