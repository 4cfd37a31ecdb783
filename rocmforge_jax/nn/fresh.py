"""The arrays that a fresh module begins with, or only their shapes."""

import contextlib
import contextvars
from typing import Any

import jax
import numpy as np

_only_shapes = contextvars.ContextVar("only_shapes", default=False)


@contextlib.contextmanager
def only_shapes():
    """Makes modules inside the context hold a `jax.ShapeDtypeStruct` for each array.

    They are as `nnx.eval_shape` makes them, to be filled from a file, but nothing is traced.
    Tracing the random numbers of 24 layers takes a second.
    """
    token = _only_shapes.set(True)
    try:
        yield
    finally:
        _only_shapes.reset(token)


def filled(shape: tuple[int, ...], value: float, dtype) -> Any:
    """Makes an array of one value by a copy: `jnp.full` would be compiled for each shape."""
    return (
        jax.ShapeDtypeStruct(shape, dtype)
        if _only_shapes.get()
        else jax.device_put(np.full(shape, value, dtype))
    )


def normal(rngs: Any, shape: tuple[int, ...], deviation: float, dtype) -> Any:
    """Draws from a normal distribution. rngs, an nnx.Rngs, may be None inside `only_shapes`."""
    return (
        jax.ShapeDtypeStruct(shape, dtype)
        if _only_shapes.get()
        else deviation * jax.random.normal(rngs.params(), shape, dtype)
    )
