"""The variables of a decoder as tensors of a file, whose bytes are computed when written."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from rocmforge_jax import formats
from rocmforge_jax.formats import Format
from rocmforge_jax.gguf.errors import listed
from rocmforge_jax.models import Decoder, tensor_name
from rocmforge_jax.models.requantize import type_of
from rocmforge_jax.nn import only_shapes
from rocmforge_jax.nn.lora import refuse_flax_adapters
from rocmforge_jax.quant import QParam, dequantize
from rocmforge_jax.quant.qtensor import value_of


@dataclasses.dataclass(frozen=True)
class Weight:
    """A variable as a tensor of a file, with the shape and dtype of its bytes.

    Attributes:
        variable: The variable.
        format: Of the tensor.
        file_shape: Of the tensor.
        transposed: Whether the tensor has the last two axes of the variable swapped.
    """

    variable: nnx.Variable
    format: Format
    file_shape: tuple[int, ...]
    transposed: bool

    dtype = np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the bytes."""
        return (*self.file_shape[:-1], self.format.row_bytes(self.file_shape[-1]))

    @property
    def offset(self) -> int:
        """0, for what reads a tensor's place in a file."""
        return 0

    @property
    def nbytes(self) -> int:
        """The bytes of the tensor."""
        return math.prod(self.shape)

    @property
    def is_as_stored(self) -> bool:
        """Whether the variable has the format already."""
        return type_of(self.variable) == self.format.name

    def values(self) -> np.ndarray:
        """Returns the values in the order of the file, in the variable's dtype or in float32."""
        value: Any = value_of(self.variable)
        values = np.asarray(dequantize(value) if isinstance(self.variable, QParam) else value)
        return np.ascontiguousarray(np.swapaxes(values, -1, -2) if self.transposed else values)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """Computes the bytes."""
        if self.is_as_stored and isinstance(self.variable, QParam):
            blocks = np.asarray(_to_bytes(value_of(self.variable)))
        elif self.is_as_stored:
            blocks = self.values().view(np.uint8)
        else:
            blocks = formats.quantize(self.values(), self.format)
        return blocks.reshape(self.shape)


@jax.jit
def _to_bytes(packed):
    return packed.to_bytes()


def weights(decoder, types: Mapping[str, Format]) -> dict[str, Weight]:
    """Returns all variables of a decoder by their names in a file.

    Args:
        decoder: The decoder.
        types: Name of a tensor -> its format, where it is another than the variable's.

    Raises:
        ValueError: Variables that no file has, such as those of adapters, all of them by name; or
            an array of a dtype that files do not have.
    """
    found = check_variables(decoder)
    return {
        name: _weight(name, variable, attribute == "kernel", types.get(name))
        for name, (attribute, variable) in found.items()
    }


def check_variables(decoder) -> dict[str, tuple[str, nnx.Variable]]:
    """Returns all variables by their names in a file, each with the name of its attribute.

    Raises ValueError for variables that no file has, and for missing ones.
    """
    refuse_flax_adapters(decoder, "saving")
    found = dict(_variables(decoder))
    with only_shapes():
        expected = dict(_variables(Decoder(decoder.config, rngs=None)))
    if unknown := [name for name in found if name not in expected]:
        raise ValueError(
            f"{len(unknown)} variables of the model have no place in a file, so it cannot be saved"
            f" as it is: {listed(unknown)}. Merge adapters into the weights first, with merge_lora"
        )
    if missing := [name for name in expected if name not in found]:
        raise ValueError(f"the model lacks {len(missing)} variables: {listed(missing)}")
    return found


def _variables(decoder) -> Iterator[tuple[str, tuple[str, nnx.Variable]]]:
    """Yields the name in a file, the attribute and the variable."""
    for path, module in nnx.iter_modules(decoder):
        for attribute, variable in vars(module).items():
            if isinstance(variable, nnx.Variable):
                yield tensor_name((*path, attribute)), (attribute, variable)


def _weight(name: str, variable, is_kernel: bool, format: Format | None) -> Weight:
    value: Any = value_of(variable)
    if format is None:
        if not (known := type_of(variable)):
            raise ValueError(
                f"{name} is {value.dtype} {list(value.shape)}: files have float32, float16 and"
                " bfloat16"
            )
        format = formats.get(known)
    shape = tuple(value.shape)
    transposed = is_kernel and len(shape) > 1
    if transposed:
        shape = (*shape[:-2], *shape[:-3:-1])
    return Weight(variable, format, shape or (1,), transposed)
