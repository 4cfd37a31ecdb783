"""Helpers of kernels that compute a recurrence for one token of each sequence."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from pallas_kernels.packing import GROUP
from pallas_kernels.qmatmul import activations


def when_real(lengths_ref, b):
    """Returns a decorator that runs a function only if sequence b has a new token.

    lengths_ref: int32 [B], 0 for a sequence without a new token; None: each sequence has one.
    """
    if lengths_ref is None:
        return lambda function: function()
    return pl.when(lengths_ref[b] > 0)


def softplus(x):
    """Computes log(1 + exp(x)) of float32 numbers."""
    return jnp.maximum(x, np.float32(0)) + jnp.log1p(jnp.exp(-jnp.abs(x)))


def like(array) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of an array."""
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def quantized_shapes(rows: int, width: int, mode: str | None) -> list[jax.ShapeDtypeStruct]:
    """Returns the shapes of quantised rows; none without a mode."""
    return [] if mode is None else activations.shapes(rows, width // GROUP, mode, False)


def store_quantized(refs, row, first, out, mode: str | None):
    """Quantises a piece of a row, from column `first` on, and stores it; nothing without a mode."""
    if mode is None:
        return
    groups = out.size // GROUP
    g = first // GROUP + jnp.arange(groups, dtype=jnp.int32)
    activations.store(refs, row, g, out.astype(jnp.float32).reshape(-1, GROUP), mode)


def of_quantized(arrays, mode: str | None) -> list:
    """Returns the Activations of quantised rows in a list, which is empty without a mode."""
    return [] if mode is None else [activations.of_arrays(arrays, mode)]
