"""The mesh over which the traced model is split."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

#: Axes of a mesh: sequences of a batch, and parts of weights and heads.
BATCH_AXIS, MODEL_AXIS = "data", "model"
_mesh: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)


@contextlib.contextmanager
def on_mesh(mesh: Mesh | None) -> Iterator[None]:
    """Traces inside the context for the devices of a mesh, or for one device."""
    token = _mesh.set(mesh)
    try:
        yield
    finally:
        _mesh.reset(token)


def current_mesh() -> Mesh | None:
    """Returns the mesh of the traced model, or None for a single device."""
    return _mesh.get()


def check_mesh(mesh: Any) -> Mesh:
    """Returns a mesh of the axes "data" and "model"; raises TypeError or ValueError for others."""
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"mesh is a jax.sharding.Mesh, as jax.make_mesh makes it, got a {type(mesh).__name__}"
        )
    names = set(mesh.axis_names)
    if not names or not names <= {BATCH_AXIS, MODEL_AXIS}:
        raise ValueError(
            f"the axes of a mesh are {BATCH_AXIS!r} and {MODEL_AXIS!r}, one of them or both, got"
            f" {', '.join(map(repr, mesh.axis_names)) or 'none'}"
        )
    if not mesh.local_devices:
        raise ValueError(f"none of the {mesh.size} devices of the mesh is one of this process")
    return mesh


def automatic(mesh: Mesh) -> Mesh:
    """Returns a mesh with automatic axes, inside which XLA finds the sharding of every array."""
    kinds = (AxisType.Auto,) * len(mesh.axis_names)
    return mesh if mesh.axis_types == kinds else Mesh(mesh.devices, mesh.axis_names, kinds)


def mesh_here(mesh: Mesh) -> Any:
    """Returns the `mesh` argument of `jax.shard_map`: None inside a context with a mesh."""
    return mesh if jax.sharding.get_abstract_mesh().empty else None


def model_parts(mesh: Mesh | None) -> int:
    """Returns the number of devices over which weights and heads are split."""
    return 1 if mesh is None else mesh.shape.get(MODEL_AXIS, 1)


def require_one_device() -> None:
    """Raises NotImplementedError while a model is traced for several devices."""
    if (mesh := current_mesh()) is not None:
        raise NotImplementedError(f"a kernel for one device, and {mesh.size} share the model")


def batch_axis(mesh: Mesh, batch: int) -> str | None:
    """Returns the axis of a mesh over which a batch is split, or None if it is not split."""
    shares = mesh.shape.get(BATCH_AXIS, 1)
    return BATCH_AXIS if shares > 1 and batch and batch % shares == 0 else None


def split_batch(array: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Splits the first axis of an array over the mesh if the sizes allow it."""
    if mesh is None:
        return array
    spec = PartitionSpec(batch_axis(mesh, array.shape[0]), *[None] * (array.ndim - 1))
    here = mesh_here(mesh)
    return jax.lax.with_sharding_constraint(
        array, spec if here is None else NamedSharding(here, spec)
    )


def on_its_mesh(method: Callable) -> Callable:
    """Makes a method of a module run with `self.numerics.mesh` as the current mesh."""

    @functools.wraps(method)
    def traced(self, *args, **options):
        with on_mesh(self.numerics.mesh):
            return method(self, *args, **options)

    return traced
