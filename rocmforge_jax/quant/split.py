"""Products with a packed matrix that the devices of a mesh share.

Each device holds whole blocks of some rows or of some columns of the stored matrix, and calls the
same kernels as a single device for its part. XLA cannot partition the operands of a kernel:
without these functions, it would gather all planes on every device.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from rocmforge_jax.backends.on_mesh import batch_axis, mesh_here, on_mesh
from rocmforge_jax.formats import Format


@dataclasses.dataclass(frozen=True)
class Split:
    """How the devices of a mesh share a stored matrix [..., N, K]. Hashable.

    Attributes:
        mesh: The devices, with automatic axes.
        rows: The axis of the mesh that splits N, or None.
        columns: The axis of the mesh that splits K, between blocks, or None.
    """

    mesh: Mesh
    rows: str | None = None
    columns: str | None = None

    def specs(self, planes: dict[str, Any], fmt: Format, layout: str) -> dict[str, PartitionSpec]:
        """Returns a PartitionSpec for each plane of the matrix."""
        return {name: self._spec(plane.ndim, name, fmt, layout) for name, plane in planes.items()}

    def _spec(self, ndim: int, name: str, fmt: Format, layout: str) -> PartitionSpec:
        """Returns the PartitionSpec of one plane; `quant.layout` describes the axes."""
        axes: list[str | None] = [None] * ndim
        if layout == "groups":
            axes[-2 if name == "d" else -3], axes[-1] = self.rows, self.columns
            return PartitionSpec(*axes)
        field = next(len(field.shape) for field in fmt.fields if field.name == name)
        if layout == "rows":
            axes[-2 - field], axes[-1 - field] = self.rows, self.columns
        else:
            axes[-2 - field], axes[-1] = self.columns, self.rows
        return PartitionSpec(*axes)


def specs_of(w) -> Any:
    """Returns a QTensor with a PartitionSpec in place of each plane."""
    return dataclasses.replace(w, planes=w.split.specs(w.planes, w.format, w.layout))


def product(multiply: Callable, x, w, batch: int) -> jax.Array:
    """Computes a product with a QTensor that is split over a mesh.

    Args:
        multiply: (x, w) -> x @ w on one device. If the inputs are split, the results of the devices
            are added, so `multiply` must return float32.
        x: [M, in].
        w: The matrix, (in, out).
        batch: The number of sequences in the M rows; 0 if the rows are not a batch.

    Returns:
        [M, out]. If the outputs are split, each device holds its share of them.
    """
    split = w.split
    inputs, outputs = split.columns, split.rows
    if not w.transposed:
        inputs, outputs = outputs, inputs
    rows = batch_axis(split.mesh, batch)

    def compute(x, w):
        with on_mesh(None):
            y = multiply(x, dataclasses.replace(w, split=None))
        return y if inputs is None else jax.lax.psum(y, inputs)

    return jax.shard_map(
        compute,
        mesh=mesh_here(split.mesh),
        in_specs=(PartitionSpec(rows, inputs), specs_of(w)),
        out_specs=PartitionSpec(rows, outputs),
        check_vma=False,
    )(x, w)


def take_rows(take: Callable, w, ids) -> jax.Array:
    """Takes rows of a QTensor that is split. Each device takes the rows that it holds.

    Args:
        take: (w, ids) -> float32 [len(ids), K] on one device.
        w: The matrix, seen as it is stored.
        ids: Integers of any shape; those outside of the matrix are clipped.

    Returns:
        float32 [*ids.shape, K].
    """
    split, count = w.split, w.shape[0]
    batch = batch_axis(split.mesh, ids.shape[0] if ids.ndim else 0)

    def compute(w, ids):
        w = dataclasses.replace(w, split=None)
        first = 0 if split.rows is None else jax.lax.axis_index(split.rows) * w.shape[0]
        here = jnp.clip(ids, 0, count - 1) - first
        values = take(w, here.reshape(-1)).reshape(*ids.shape, -1)
        if split.rows is None:
            return values
        mine = (here >= 0) & (here < w.shape[0])
        return jax.lax.psum(jnp.where(mine[..., None], values, jnp.float32(0)), split.rows)

    spec = PartitionSpec(batch, *[None] * (ids.ndim - 1)) if ids.ndim else PartitionSpec()
    return jax.shard_map(
        compute,
        mesh=mesh_here(split.mesh),
        in_specs=(specs_of(w), spec),
        out_specs=PartitionSpec(*spec, *[None] * (ids.ndim - len(spec)), split.columns),
        check_vma=False,
    )(w, ids)
