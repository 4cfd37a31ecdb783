"""The initial arrays of a module, or only their shapes."""

import contextlib
import contextvars
from typing import Any

import jax
import numpy as np

_only_shapes = contextvars.ContextVar("only_shapes", default=False)


@contextlib.contextmanager
def only_shapes():
    """Makes modules created inside the context hold a `jax.ShapeDtypeStruct` for each array.

    The modules equal those from `nnx.eval_shape`, but nothing is traced, which makes loading faster
    (measured: docs/kernels.md).
    """
    token = _only_shapes.set(True)
    try:
        yield
    finally:
        _only_shapes.reset(token)


def filled(shape: tuple[int, ...], value: float, dtype) -> Any:
    """Makes a constant array by a copy, because `jnp.full` would be compiled for each shape."""
    return (
        jax.ShapeDtypeStruct(shape, dtype)
        if _only_shapes.get()
        else jax.device_put(np.full(shape, value, dtype))
    )


def normal(rngs: Any, shape: tuple[int, ...], deviation: float, dtype) -> Any:
    """Draws from a normal distribution; rngs (nnx.Rngs) may be None inside `only_shapes`."""
    return (
        jax.ShapeDtypeStruct(shape, dtype)
        if _only_shapes.get()
        else deviation * jax.random.normal(rngs.params(), shape, dtype)
    )
