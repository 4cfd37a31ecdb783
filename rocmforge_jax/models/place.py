"""Makes the variables of a decoder from the tensors of a file, on their devices."""

import contextlib
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from rocmforge_jax import ahead, formats
from rocmforge_jax.backends import cpp
from rocmforge_jax.backends.on_mesh import automatic
from rocmforge_jax.formats.packing import GROUP
from rocmforge_jax.gguf import TensorInfo
from rocmforge_jax.models.claims import Claim
from rocmforge_jax.models.load_options import LoadOptions
from rocmforge_jax.models.sharding import Shares
from rocmforge_jax.quant import QParam, QTensor, default_layout, repack
from rocmforge_jax.quant.placement import platform_of
from rocmforge_jax.quant.split import Split
from rocmforge_jax.quant.word_packed import padding_of


class Placer:
    """Makes variables.

    Quantised matrices of products stay packed. Everything else becomes an nnx.Param in the file's
    dtype, or in float32 where it is quantised, kernels transposed to (in, out). What the options
    dequantise becomes an nnx.Param in their dtype.
    """

    def __init__(self, options: LoadOptions, dense: set[str], shares: Shares | None):
        """Makes a placer.

        Args:
            options: How the file is loaded.
            dense: Names of the packed tensors that are dequantised.
            shares: How the devices of a mesh share the tensors, or None without a mesh.
        """
        self._options, self._dense, self._shares = options, dense, shares

    def variable(self, claim: Claim) -> nnx.Variable:
        """Reads the tensor of a claim and makes its variable."""
        if self._shares is not None:
            return _as_variable(self._shared(claim))
        device: Any = self._options.device
        value = self._ahead(claim)
        if value is None:
            value = self._value(claim, _blocks(claim), device)
        if device is not None:
            value = jax.device_put(value, device)
        return _as_variable(_padded(value) if self._pads(value) else value)

    def abstract(self, claim: Claim) -> nnx.Variable:
        """Makes the variable of a claim with a `jax.ShapeDtypeStruct` for each array.

        It reads nothing of the tensor but its shape.
        """
        return _as_variable(self._shapes(claim))

    def nbytes(self, claim: Claim) -> int:
        """Returns the bytes that the variable of a claim takes on a device."""
        if self._shares is None and self._stays_packed(claim):
            return claim.tensor.nbytes + self._padding_bytes(claim)
        return sum(map(_nbytes, jax.tree.leaves(self._shapes(claim))))

    def _pads(self, value: Any) -> bool:
        """Returns whether a value is a QTensor that only a GPU reads and whose rows need padding.

        Others are left alone, because a program for each of their shapes would be compiled.
        """
        return (
            isinstance(value, QTensor)
            and self._shares is None
            and self._is_for_gpu
            and value.missing_padding > 0
        )

    def _padding_bytes(self, claim: Claim) -> int:
        """Returns the bytes that `QTensor.padded` appends to a packed tensor."""
        if not self._is_for_gpu or self._layout(claim) != "groups":
            return 0
        groups = claim.shape[-1] // GROUP
        return claim.tensor.nbytes * padding_of(groups) // groups

    @property
    def _is_for_gpu(self) -> bool:
        return platform_of(self._options.first) != "cpu"

    def _stays_packed(self, claim: Claim) -> bool:
        return claim.is_packed and claim.name not in self._dense

    def _layout(self, claim: Claim) -> str:
        options, format = self._options, claim.tensor.format
        return options.layout or default_layout(format, options.first, options.numerics)

    def _shapes(self, claim: Claim) -> Any:
        """Returns the value of a variable with a ShapeDtypeStruct for each array."""
        shapes: Any = self._free_shapes(claim)
        if self._shares is None:
            device: Any = self._options.device
            if device is None:
                return shapes
            sharding = SingleDeviceSharding(device)
            return jax.tree.map(lambda a: a.update(sharding=sharding), shapes)
        mesh, spec = self._options.mesh, self._shares.spec(claim)
        assert mesh is not None
        if not isinstance(shapes, QTensor):
            array: Any = shapes
            return array.update(sharding=NamedSharding(mesh, spec))
        rows, columns = _stored(claim, spec)[-2:]
        split = Split(automatic(mesh), rows, columns)
        if mesh.size > 1:
            shapes = dataclasses.replace(shapes, split=split)
        abstract: dict[str, Any] = shapes.planes
        specs = split.specs(abstract, shapes.format, shapes.layout)
        planes = {
            name: plane.update(sharding=NamedSharding(mesh, specs[name]))
            for name, plane in abstract.items()
        }
        return dataclasses.replace(shapes, planes=planes)

    def _free_shapes(self, claim: Claim) -> Any:
        format, transposed = claim.tensor.format, _is_kernel(claim)
        if self._stays_packed(claim):
            *rows, inputs = claim.shape
            blocks = jax.ShapeDtypeStruct((*rows, format.row_bytes(inputs)), jnp.uint8)
            split = functools.partial(
                QTensor.from_bytes, fmt=format, layout=self._layout(claim), transposed=transposed
            )
            value = jax.eval_shape(split, blocks)
            return jax.eval_shape(QTensor.padded, value) if self._pads(value) else value
        shape = claim.shape
        if transposed and len(shape) > 1:
            shape = (*shape[:-2], shape[-1], shape[-2])
        return jax.ShapeDtypeStruct(shape, self._dense_dtype(claim))

    def _dense_dtype(self, claim: Claim) -> Any:
        if claim.name in self._dense and claim.is_packed:
            return self._options.numerics.dtype
        format = claim.tensor.format
        return jnp.dtype("float32" if format.is_quantized else format.fields[0].dtype)

    def _shared(self, claim: Claim) -> Any:
        """Makes the value of a variable that the devices of a mesh share.

        Of the file, only what devices of this process hold is read, and once for all that hold the
        same.
        """
        assert self._shares is not None and self._options.mesh is not None
        shapes, data, format = self._shapes(claim), _blocks(claim), claim.tensor.format
        stored = PartitionSpec(*_stored(claim, self._shares.spec(claim)))
        size = format.block_bytes if format.is_quantized else format.row_bytes(1)
        units = (*data.shape[:-1], data.shape[-1] // size)
        where = NamedSharding(self._options.mesh, stored).addressable_devices_indices_map(units)
        read, pieces = {}, []
        for device, index in where.items():
            *lead, last = (slice(*one.indices(n)) for one, n in zip(index or (), units))
            at = (*lead, slice(last.start * size, last.stop * size))
            key = tuple((one.start, one.stop) for one in at)
            if key not in read:
                read[key] = self._value(claim, np.ascontiguousarray(data[at]), device)
            pieces.append(jax.device_put(read[key], device))
        whole = dataclasses.replace(shapes, split=None) if isinstance(shapes, QTensor) else shapes
        made = jax.tree.map(
            lambda a, *parts: jax.make_array_from_single_device_arrays(a.shape, a.sharding, parts),
            whole,
            *pieces,
        )
        if isinstance(shapes, QTensor):
            return dataclasses.replace(made, split=shapes.split)
        return made

    def _ahead(self, claim: Claim) -> QTensor | None:
        """Returns what was read ahead of a tensor, or None."""
        tensor = claim.tensor
        if not self._stays_packed(claim) or self._layout(claim) != "groups":
            return None
        # Read ahead were the shapes of the file, which may have dimensions of 1 more.
        whole = isinstance(tensor, TensorInfo) and tensor.shape == claim.shape
        planes = ahead.take(tensor) if whole else None
        if planes is None:
            return None
        return QTensor.from_planes(planes, tensor.format, transposed=_is_kernel(claim))

    def _value(self, claim: Claim, data: np.ndarray, device: Any) -> Any:
        """Converts the bytes of a tensor to the value of its variable: a QTensor or a dense array.

        Args:
            claim: The variable and its tensor.
            data: The blocks of the tensor, uint8 [..., row bytes].
            device: The device that computes the conversion; None for JAX's default.
        """
        make = self._packed if self._stays_packed(claim) else self._dense_array
        with contextlib.nullcontext() if device is None else jax.default_device(device):
            return make(claim, data)

    def _dense_array(self, claim: Claim, data: np.ndarray) -> jax.Array:
        format = claim.tensor.format
        if format.is_quantized:
            values = formats.dequantize(data, format)
        else:
            values = jnp.asarray(data.view(np.dtype(format.fields[0].dtype)))
        values = values.astype(self._dense_dtype(claim))
        return jnp.swapaxes(values, -1, -2) if _is_kernel(claim) and values.ndim > 1 else values

    def _packed(self, claim: Claim, data: np.ndarray) -> QTensor:
        format, layout, transposed = claim.tensor.format, self._layout(claim), _is_kernel(claim)
        if layout == "groups":
            with contextlib.suppress(NotImplementedError):
                cpp.instructions()  # raises NotImplementedError without the C++ library
                planes = repack.planes_of(cpp.file(), data, format)
                return QTensor.from_planes(planes, format, transposed=transposed)
        return _split(data, format.name, layout, transposed)


def _blocks(claim: Claim) -> np.ndarray:
    """Returns the blocks of a tensor, uint8 [*shape[:-1], row bytes]."""
    return claim.tensor.data.reshape(*claim.shape[:-1], -1)


def _stored(claim: Claim, spec: PartitionSpec) -> tuple:
    """Returns how the axes of a file's tensor are split, from those of its variable."""
    axes = tuple(spec)
    return (*axes[:-2], axes[-1], axes[-2]) if _is_kernel(claim) and len(axes) > 1 else axes


def _nbytes(shape: Any) -> int:
    """Returns the bytes of an abstract array on one of its devices."""
    held = shape.shape if shape.sharding is None else shape.sharding.shard_shape(shape.shape)
    return math.prod(held) * shape.dtype.itemsize


def _is_kernel(claim: Claim) -> bool:
    return claim.attribute == "kernel"


def _as_variable(value) -> nnx.Variable:
    return QParam(value) if isinstance(value, QTensor) else nnx.Param(value)


_padded = jax.jit(QTensor.padded)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _split(row_bytes, type_name, layout, transposed):
    return QTensor.from_bytes(row_bytes, type_name, layout=layout, transposed=transposed)
