"""Learned vectors that are not part of a linear layer or a norm."""

import jax.numpy as jnp
from flax import nnx

from rocmforge_jax.nn.fresh import filled


class Vector(nnx.Module):
    """A vector that a GGUF file calls `weight`, such as the sinks of attention."""

    def __init__(self, size: int, *, initial: float = 0, dtype=jnp.float32):
        self.kernel = nnx.Param(filled((size,), initial, dtype))


class Bias(nnx.Module):
    """A vector that a GGUF file calls `bias`, zeros at first."""

    def __init__(self, size: int, *, dtype=jnp.float32):
        self.bias = nnx.Param(filled((size,), 0, dtype))
