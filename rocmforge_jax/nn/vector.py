"""Learned vectors that are not part of a linear layer or a norm."""

import jax.numpy as jnp
from flax import nnx

from rocmforge_jax.nn.fresh import filled


class Vector(nnx.Module):
    """A learned vector that GGUF files call `weight`, such as attention sinks."""

    def __init__(self, size: int, *, initial: float = 0, dtype=jnp.float32):
        self.kernel = nnx.Param(filled((size,), initial, dtype))


class Bias(nnx.Module):
    """A learned vector that GGUF files call `bias`, initially zeros."""

    def __init__(self, size: int, *, dtype=jnp.float32):
        self.bias = nnx.Param(filled((size,), 0, dtype))
