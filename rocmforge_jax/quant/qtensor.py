"""A quantised matrix as a pytree, and the Flax variable that holds one."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.packing import GROUP, Packing
from rocmforge_jax import formats
from rocmforge_jax.html import escape
from rocmforge_jax.quant import layout as layouts
from rocmforge_jax.quant import placement, word_packed
from rocmforge_jax.quant.multiply import multiply
from rocmforge_jax.quant.overview import qtensor_html
from rocmforge_jax.quant.split import Split

#: What an array has and a QTensor has not, and where to look instead.
_WITHOUT = {
    "dtype": "each of its planes has one, and its type is `type_name`",
    "sharding": "each of its planes has one",
    "at": "packed weights are not updated in place; use rocmforge_jax.dequantize(w)",
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QTensor:
    """A matrix, or a stack of them, whose rows are packed in blocks of a ggml type.

    planes: {name: array}, laid out as `layout` says (see `quant.layout`). The stored matrix is
    [..., N, K] and its rows, K elements each, are quantised. `transposed` is how the tensor is
    seen, not how it is stored:

        transposed == False:  shape == (..., N, K)     an embedding (vocabulary, width)
        transposed == True:   shape == (..., K, N)     a Flax kernel (in, out)

    So `.T` costs nothing, and a head tied to its embedding is the same planes. `split` says how the
    devices of a mesh share the matrix; None, if each that has it has all of it. `padding` is the
    number of groups of zeros at the end of each row in layout "groups"; see `padded`. Static fields
    are metadata of the pytree; the shape is read off the planes and cannot disagree with them.
    """

    planes: dict[str, jax.Array]
    type_name: str = dataclasses.field(metadata=dict(static=True))
    layout: str = dataclasses.field(metadata=dict(static=True))
    transposed: bool = dataclasses.field(default=False, metadata=dict(static=True))
    split: Split | None = dataclasses.field(default=None, metadata=dict(static=True))
    padding: int = dataclasses.field(default=0, metadata=dict(static=True))

    @classmethod
    def from_bytes(
        cls, row_bytes, fmt, *, layout: str | None = None, transposed: bool = False
    ) -> "QTensor":
        """uint8 [..., N, row bytes], as a file holds them, -> QTensor.

        Traceable. layout None: the device's.

        ValueError: a plain type, another layout, no matrix of whole blocks or an empty one.
        """
        fmt = formats.get(fmt)
        if not fmt.is_quantized:
            raise ValueError(f"{fmt} is not quantised: hold it as an array")
        dtype, shape = (
            getattr(row_bytes, "dtype", type(row_bytes).__name__),
            getattr(row_bytes, "shape", ()),
        )
        if dtype != jnp.uint8 or len(shape) < 2 or 0 in shape[-2:]:
            raise ValueError(
                f"a {fmt} matrix is uint8 [..., rows, row bytes], at least one row and block, got"
                f" {dtype} {list(shape)}"
            )
        layout = layout or placement.default_layout(fmt)
        return cls(layouts.split(row_bytes, fmt, layout), fmt.name, layout, transposed)

    @classmethod
    def from_planes(cls, planes, fmt, *, transposed: bool = False) -> "QTensor":
        """Makes a QTensor of planes in layout "groups" in the host's memory, without a copy."""
        on_device = {name: jax.device_put(plane) for name, plane in planes.items()}
        return cls(on_device, formats.get(fmt).name, "groups", transposed)

    def to_bytes(self) -> jax.Array:
        """Returns what `from_bytes` takes: uint8 [..., N, row bytes]."""
        planes = word_packed.without_padding(self.planes, self.padding)
        return layouts.join(planes, self.format, self.layout)

    def padded(self) -> "QTensor":
        """Appends groups of zeros to each row until rows of words begin at multiples of 32 bytes.

        GPUs then read 16 bytes at a time. Returns the same QTensor if its rows are aligned, if it
        has another layout or a mesh, or if the padding would take more than 7 % of the memory.
        """
        if not (padding := self.missing_padding):
            return self
        planes = word_packed.with_padding(self.planes, padding)
        return dataclasses.replace(self, planes=planes, padding=padding)

    @property
    def missing_padding(self) -> int:
        """The number of groups that `padded` appends to each row."""
        if self.layout != "groups" or self.split is not None or self.padding:
            return 0
        return word_packed.padding_of(self.groups)

    @property
    def format(self) -> formats.Format:
        """The declaration of the type."""
        return formats.get(self.type_name)

    @property
    def packing(self) -> Packing:
        """How kernels read the planes, which must lie in layout "groups"."""
        return word_packed.packing(self.format)

    @property
    def rows(self) -> int:
        """N, as the kernels call it: how many rows the stored matrix has."""
        return self.stored_shape[-2]

    @property
    def groups(self) -> int:
        """K / 32, as the kernels call it: how many groups of inputs a row has."""
        return self.stored_shape[-1] // GROUP

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """(..., N, K)."""
        *lead, columns = layouts.stored_shape(self.planes, self.format, self.layout)
        return (*lead, columns - self.padding * GROUP)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape as the tensor is seen: (..., N, K), or (..., K, N) if transposed."""
        *lead, rows, columns = self.stored_shape
        return (*lead, columns, rows) if self.transposed else (*lead, rows, columns)

    @property
    def ndim(self) -> int:
        """The number of axes of `shape`."""
        return len(self.stored_shape)

    @property
    def size(self) -> int:
        """The number of weights."""
        return math.prod(self.stored_shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the planes: as many as in the file, or up to 11 % more in layout "groups"."""
        planes = self.planes.values()  # abstract ones too
        return sum(math.prod(plane.shape) * jnp.dtype(plane.dtype).itemsize for plane in planes)

    @property
    def T(self) -> "QTensor":
        """The same planes seen with the last two axes swapped; no data moves."""
        return dataclasses.replace(self, transposed=not self.transposed)

    def __getitem__(self, index):
        """Returns itself for `...`, with which Flax reads a variable."""
        if index is Ellipsis:
            return self
        raise TypeError(
            f"{self} has no parts: take rows of an embedding with rocmforge_jax.quant.take_rows,"
            " or parts of rocmforge_jax.dequantize(w)"
        )

    def __getattr__(self, name: str):
        reason = f": {_WITHOUT[name]}" if name in _WITHOUT else ""
        raise AttributeError(f"a QTensor has no attribute {name!r}{reason}")

    #: NumPy leaves `x @ w` to __rmatmul__.
    __array_ufunc__ = None

    def __array__(self, dtype=None, copy=None):
        raise TypeError(f"{self} does not become an array by itself: use rocmforge_jax.dequantize")

    def __rmatmul__(self, x):
        return multiply(x, self)

    def _refuse_arithmetic(self, other=None):
        raise TypeError(
            f"{self} takes no arithmetic but x @ w: compute with rocmforge_jax.dequantize(w)"
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse_arithmetic
    __truediv__ = __rtruediv__ = __neg__ = _refuse_arithmetic

    def __repr__(self):
        if not self._holds_planes:
            return f"QTensor({self.type_name}, planes={self.planes})"
        return f"QTensor({self.type_name}, shape={self.shape}, layout={self.layout!r})"

    def _repr_html_(self) -> str:
        return qtensor_html(self) if self._holds_planes else escape(repr(self))

    @property
    def _holds_planes(self) -> bool:
        """False if `jax.tree.map` put something else, such as norms or shapes, in their place."""
        try:
            return bool(self.shape) and self.nbytes >= 0
        except (AttributeError, IndexError, TypeError, ValueError):
            return False


class QParam(nnx.Variable):
    """A weight that stays quantised: an NNX variable whose value is a `QTensor`.

    It is no `nnx.Param`, so `nnx.grad` leaves its integer planes alone, and it has no
    `__jax_array__`, which would write the dense weight in silence: read it with `get_value()`,
    multiply with `x @ param`, or `dequantize` it by name.
    """

    @property
    def __jax_array__(self):
        raise AttributeError(
            "a QParam does not become an array by itself: use rocmforge_jax.dequantize(param)"
        )

    def __nnx_repr__(self):
        first, *others = super().__nnx_repr__()
        value = self.get_value()
        if isinstance(value, QTensor) and value._holds_planes:
            counts = f" # {value.type_name}, {value.size:,} weights, {value.nbytes:,} B"
            first = dataclasses.replace(first, comment=counts)
        yield first
        yield from others

    def _repr_html_(self) -> str:
        value = self.get_value()
        return value._repr_html_() if isinstance(value, QTensor) else escape(repr(self))

    __array_ufunc__ = None

    def __array__(self, dtype=None, copy=None):
        raise TypeError(
            "a QParam does not become an array by itself: use rocmforge_jax.dequantize(param)"
        )

    def __rmatmul__(self, x):
        return x @ self.get_value()


def value_of(weight):
    """Unwraps an nnx.Variable; returns anything else unchanged.

    Raises TypeError for a QTensor without integers, as a cast of a whole state makes it.
    """
    value = weight.get_value() if isinstance(weight, nnx.Variable) else weight
    if isinstance(value, QTensor):
        dtypes: list[Any] = [getattr(one, "dtype", None) for one in value.planes.values()]
        if None not in dtypes and not any(jnp.issubdtype(one, jnp.integer) for one in dtypes):
            raise TypeError(
                f"the planes of this {value.type_name} weight were cast to {dtypes[0]}: cast only"
                " nnx.state(model, nnx.Param), or load with dtype="
            )
    return value


def as_qtensor(weight) -> QTensor:
    """Unwraps a QParam; returns a QTensor unchanged and raises TypeError for anything else."""
    value = value_of(weight)
    if not isinstance(value, QTensor):
        raise TypeError(f"expected a QTensor or a QParam, got {type(weight).__name__}")
    return value
