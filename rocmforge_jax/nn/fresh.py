"""The arrays that a fresh module begins with, or only their shapes."""

import contextlib
import contextvars

import jax
import numpy as np
from flax import nnx

_only_shapes = contextvars.ContextVar("only_shapes", default=False)


@contextlib.contextmanager
def only_shapes():
    """Modules made inside hold a `jax.ShapeDtypeStruct` for each array, as `nnx.eval_shape` gives
    them, for those who fill them from a file. Nothing is traced: tracing how 24 layers would be
    drawn takes a second.
    """
    token = _only_shapes.set(True)
    try:
        yield
    finally:
        _only_shapes.reset(token)


def filled(shape: tuple[int, ...], value: float, dtype):
    """An array of one value. Copied to the device: `jnp.full` would be compiled for each shape."""
    return (
        jax.ShapeDtypeStruct(shape, dtype)
        if _only_shapes.get()
        else jax.device_put(np.full(shape, value, dtype))
    )


def normal(rngs: nnx.Rngs | None, shape: tuple[int, ...], deviation: float, dtype):
    """Numbers of a normal distribution. rngs: None where only shapes are made."""
    return (
        jax.ShapeDtypeStruct(shape, dtype)
        if _only_shapes.get()
        else deviation * jax.random.normal(rngs.params(), shape, dtype)
    )
