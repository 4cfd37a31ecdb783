"""Splits calls of the C++ library over the devices of a mesh.

Without a rule, XLA would gather all operands of a call on every device. The rule names the axes of
operands and results. Axes with the same name can be split in the same way.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.custom_batching import sequential_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec


def call(
    function: Callable, operands: Sequence[jax.Array], axes: Sequence[str], results: Sequence[str]
) -> list[jax.Array]:
    """Computes function(*operands); each of several devices computes its share.

    Args:
        function: Returns the list of results for operands of any size. It is hashable, and equal
            functions compute the same.
        operands: The operands, none of them empty.
        axes: The names of the axes of each operand, such as "b t h". An axis in capitals is never
            split. "(k g)" is one axis of k groups of g, which can be split between groups.
        results: The names of the axes of each result.
    """
    pairs = [
        pair for names, array in zip(axes, operands) for pair in zip(_split(names), array.shape)
    ]
    sizes = {part[0]: size for part, size in pairs if len(part) == 1}
    sizes |= {part[1]: size // sizes[part[0]] for part, size in pairs if len(part) > 1}
    return _partitioned(function, tuple(axes), tuple(results), tuple(sizes.items()))(*operands)


@functools.cache
def _partitioned(function, axes, results, sizes):
    """Makes the function that XLA partitions."""
    run = custom_partitioning(lambda *operands: function(*operands))
    sizes, named = dict(sizes), [part for names in (*axes, *results) for part in _split(names)]
    whole = dict.fromkeys(name for part in named for name in part if name.isupper())

    def partition(mesh, operands, outputs):
        found = _axes_of(mesh, [*results, *axes], [*outputs, *operands], sizes)

        def sharding(names):
            return NamedSharding(mesh, PartitionSpec(*map(found.get, _major(names))))

        return (
            mesh,
            lambda *operands: function(*operands),
            list(map(sharding, results)),
            tuple(map(sharding, axes)),
        )

    run.def_partition(
        partition,
        sharding_rule=f"{', '.join(axes)} -> {', '.join(results)}",
        need_replication_factors=tuple(whole),  # in the order in which the rule names them
        **{part[1]: sizes[part[1]] for part in named if len(part) > 1},
    )
    return sequential_vmap(run)


def _axes_of(mesh, names, arrays, sizes) -> dict[str, str | tuple[str, ...]]:
    """Finds the mesh axes over which each named axis is split; earlier arrays take precedence."""
    found, used = {}, set()
    for of_array, array in zip(names, arrays):
        for name, axis in zip(_major(of_array), array.sharding.spec):
            if axis is None or name in found or name.isupper():
                continue
            group = axis if isinstance(axis, tuple) else (axis,)
            shares = int(np.prod([mesh.shape[one] for one in group]))
            if sizes[name] % shares == 0 and used.isdisjoint(group):
                found[name] = axis
                used.update(group)
    return found


def _split(names: str) -> list[list[str]]:
    """Splits a text into the names of each axis: "b (k g)" -> [["b"], ["k", "g"]]."""
    axes, inside = [], False
    for word in names.split():
        if inside:
            axes[-1].append(word.strip("()"))
        else:
            axes.append([word.strip("()")])
        inside = (inside or word.startswith("(")) and not word.endswith(")")
    return axes


def _major(names: str) -> list[str]:
    """Returns the name by which each axis is split."""
    return [axis[0] for axis in _split(names)]
