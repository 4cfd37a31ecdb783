"""Computes on meshes with explicit axes, as made by `jax.make_mesh`, as if they were automatic.

With explicit axes, JAX requires the sharding of each result of reshaping and indexing packed
planes, caches and heads. With automatic axes, XLA finds these shardings.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, auto_axes


def explicit_mesh(*trees) -> Any:
    """Returns the first mesh with explicit axes among the arrays of some pytrees, or None."""
    for leaf in jax.tree.leaves(trees):
        if not isinstance(leaf, jax.Array):  # a layer that a user replaced by a function
            continue
        mesh = getattr(getattr(jax.typeof(leaf), "sharding", None), "mesh", None)
        if mesh is not None and AxisType.Explicit in mesh.axis_types:
            return mesh
    return None


def in_auto_axes(function: Callable, operands: tuple, results: Any, mesh) -> Any:
    """Computes function(*operands) with automatic axes, by `jax.sharding.auto_axes`.

    Args:
        function: A function of pytrees of arrays.
        operands: The pytrees.
        results: A pytree with the PartitionSpec of each returned array.
        mesh: The mesh with explicit axes, as returned by `explicit_mesh`.
    """
    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        results,
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )
    return auto_axes(function, out_sharding=shardings)(*operands)


def spec_of(array, axes: int) -> PartitionSpec:
    """Returns the PartitionSpec of the first `axes` axes of an array."""
    spec = jax.typeof(array).sharding.spec
    return PartitionSpec(*(*spec, *[None] * axes)[:axes])
