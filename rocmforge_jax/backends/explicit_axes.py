"""Computes on meshes with explicit axes, those of `jax.make_mesh`, as with automatic ones.

Packed planes, caches and heads are reshaped and indexed in ways for which explicit axes ask for the
sharding of every result. Inside automatic axes XLA finds it.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, auto_axes


def explicit_mesh(*trees) -> Any:
    """Returns the mesh with explicit axes that an array of the trees is on, or None."""
    for leaf in jax.tree.leaves(trees):
        mesh = getattr(getattr(jax.typeof(leaf), "sharding", None), "mesh", None)
        if mesh is not None and AxisType.Explicit in mesh.axis_types:
            return mesh
    return None


def in_auto_axes(function: Callable, operands: tuple, results: Any, mesh) -> Any:
    """Computes function(*operands) with automatic axes.

    Args:
        function: The function of arrays in pytrees.
        operands: The pytrees.
        results: A PartitionSpec for each array that the function returns, in a pytree.
        mesh: What `explicit_mesh` returned for the operands.
    """
    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        results,
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )
    return auto_axes(function, out_sharding=shardings)(*operands)


def spec_of(array, axes: int) -> PartitionSpec:
    """Returns how the first axes of an array are split."""
    spec = jax.typeof(array).sharding.spec
    return PartitionSpec(*(*spec, *[None] * axes)[:axes])
