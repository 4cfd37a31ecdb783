"""How far the values of tensors are from those of others, such as unquantised ones."""

import dataclasses
import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from rocmforge_jax import formats
from rocmforge_jax.arguments import shown
from rocmforge_jax.gguf import GGUFFile, TensorInfo, open_gguf
from rocmforge_jax.gguf.errors import listed
from rocmforge_jax.html import table
from rocmforge_jax.locate import resolve
from rocmforge_jax.models.patterns import Patterns, matching
from rocmforge_jax.quant import QTensor, dequantize
from rocmforge_jax.quant.qtensor import value_of

#: Values that are decoded at once.
CHUNK = 1 << 21


@dataclasses.dataclass(frozen=True, repr=False)
class QuantizationErrors:
    """Errors of tensors, one entry for each, in the order of the first file.

    Attributes:
        names: Of the tensors, "" for an array.
        types: Of the tensors, "Q4_0" or a dtype.
        other_types: Of what they are compared with.
        shapes: Of the tensors.
        rmse: float64 [tensors], the root mean square of the errors.
        largest: float64 [tensors], the largest magnitude of an error.
        relative: float64 [tensors], rmse in units of the root mean square of the other values.
        snr: float64 [tensors], the signal-to-noise ratio in dB, inf without errors.
    """

    names: tuple[str, ...]
    types: tuple[str, ...]
    other_types: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    rmse: np.ndarray
    largest: np.ndarray
    relative: np.ndarray
    snr: np.ndarray

    def __len__(self):
        return len(self.names)

    def _rows(self) -> Iterator[tuple[str, ...]]:
        for i, name in enumerate(self.names):
            kinds = f"{self.types[i]} / {self.other_types[i]}"
            errors = f"{self.rmse[i]:.3g}", f"{self.largest[i]:.3g}", f"{self.relative[i]:.3%}"
            yield name or "array", kinds, *errors, f"{self.snr[i]:.1f}"

    def __repr__(self):
        lines = [
            f"{name}: {kinds}, rmse {rmse}, largest {largest}, relative {relative}, {snr} dB"
            for name, kinds, rmse, largest, relative, snr in self._rows()
        ]
        return listed(lines, "\n", most=20)

    def _repr_html_(self) -> str:
        header = "tensor", "type / other", "rmse", "largest", "relative", "SNR in dB"
        return table(header, self._rows(), most=200)


def quantization_error(tensor: Any, other: Any, names: Patterns = True) -> QuantizationErrors:
    """Compares the values of a tensor, or of the tensors of a file, with others.

    Args:
        tensor: A GGUF file, open or by its name as for `load`; a TensorInfo, a QTensor, a QParam,
            an nnx.Param or an array.
        other: What counts as right: of the same kind, or a file for the tensor of another file.
        names: For files, patterns of names: see `models.matching`. Default: all that both have.

    Returns:
        The errors of each tensor. Sums are float64.

    Raises:
        TypeError: Something is neither a tensor nor a file.
        KeyError: The other file has no tensor of that name.
        ValueError: Shapes differ, a pattern matches nothing, or the files share no tensor.
    """
    tensor, other = _opened(tensor), _opened(other)
    if isinstance(tensor, GGUFFile):
        if not isinstance(other, GGUFFile):
            raise TypeError(f"a file is compared with a file, got {shown(other)}")
        common = [name for name in tensor.tensors if name in other.tensors]
        if not common:
            raise ValueError(f"{tensor.path} and {other.path} share no name of a tensor")
        chosen = matching(names, common)
        pairs = [(tensor.tensors[n], other.tensors[n]) for n in common if n in chosen]
    elif isinstance(other, GGUFFile):
        if not isinstance(tensor, TensorInfo):
            raise TypeError(
                f"only a tensor with a name is looked up in a file, got {shown(tensor)}"
            )
        pairs = [(tensor, other.tensors[tensor.name])]
    else:
        pairs = [(tensor, other)]
    found = [_compared(*pair) for pair in pairs]
    names, kinds, other_kinds, shapes, *numbers = zip(*map(dataclasses.astuple, found))
    rmse, largest, relative, snr = map(np.array, numbers)
    return QuantizationErrors(names, kinds, other_kinds, shapes, rmse, largest, relative, snr)


@dataclasses.dataclass(frozen=True)
class _Error:
    name: str
    kind: str
    other_kind: str
    shape: tuple[int, ...]
    rmse: float
    largest: float
    relative: float
    snr: float


def _opened(given: Any) -> Any:
    if isinstance(given, str | os.PathLike):
        return open_gguf(resolve(given))
    if isinstance(given, GGUFFile | TensorInfo):
        return given
    value = value_of(given)
    if not isinstance(value, QTensor) and not hasattr(value, "__array__"):
        raise TypeError(f"this compares tensors, arrays and files, got {shown(given)}")
    return value


def _compared(tensor: Any, other: Any) -> _Error:
    name, shape = getattr(tensor, "name", ""), tuple(tensor.shape)
    if shape != tuple(other.shape):
        raise ValueError(
            f"{name or 'the tensor'} has shape {list(shape)}, the other {list(other.shape)}: they"
            " must be equal"
        )
    errors = squares = largest = 0.0
    for values, right in zip(_chunks(tensor), _chunks(other)):
        off = values.astype(np.float64) - right
        errors += np.square(off).sum()
        squares += np.square(right, dtype=np.float64).sum()
        largest = np.maximum(largest, np.abs(off).max(initial=0.0))  # a NaN stays
    size = max(math.prod(shape), 1)
    ratio = errors / squares if squares else math.inf if errors else 0.0
    snr = math.inf if ratio == 0 else -10 * math.log10(ratio)
    kinds = _kind(tensor), _kind(other)
    return _Error(
        name, *kinds, shape, math.sqrt(errors / size), float(largest), math.sqrt(ratio), snr
    )


def _kind(tensor: Any) -> str:
    if isinstance(tensor, TensorInfo):
        return tensor.format.name
    return tensor.type_name if isinstance(tensor, QTensor) else str(np.asarray(tensor).dtype)


def _chunks(tensor: Any) -> Iterator[np.ndarray]:
    """Yields the values of a tensor in order, some rows at a time."""
    rows = _rows_of(tensor)
    width = max(1, tensor.shape[-1] if tensor.shape else 1)
    step = max(1, CHUNK // width)
    for first in range(0, len(rows), step):
        chunk = rows[first : first + step]
        if isinstance(tensor, TensorInfo):
            chunk = np.asarray(formats.dequantize(chunk, tensor.format))
        yield chunk


def _rows_of(tensor: Any) -> np.ndarray:
    if isinstance(tensor, TensorInfo):
        data = tensor.data
        return data.reshape(-1, data.shape[-1])
    array = np.asarray(dequantize(tensor) if isinstance(tensor, QTensor) else tensor)
    return array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(1, 1)
