"""Reads and checks an architecture's keys in a file's metadata, and records which were read."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from rocmforge_jax.gguf import GGUFError, GGUFFile
from rocmforge_jax.gguf.errors import quoted

#: Keys that begin with this have no architecture prefix in files.
_WITHOUT_PREFIX = "xielu."


class MissingKeyError(GGUFError):
    """The file lacks a key that the family requires.

    Attributes:
        key: The key without the architecture's prefix.
        problem: The message without the file's path.
    """

    def __init__(self, path, key: str, problem: str):
        super().__init__(f"{path}: {problem}")
        self.key, self.problem = key, problem


class KeyReader:
    """Gives the functions of families access to the keys and tensors of a file.

    For a value of the wrong type or range, a getter raises GGUFError with the key, the expected
    range and the value. For a missing key, it returns its default, or raises MissingKeyError.

    Attributes:
        path: The path of the file.
        architecture: The name of the architecture, which is the prefix of its keys.
        tensors: The file's tensors by name.
        layers: The number of layers, without the blocks for multi-token prediction.
        blocks: The number of blocks to read: the layers, and with nextn=True the blocks for
            multi-token prediction after them. Per-layer getters return one value per block.
        trained_context: The context length of the training, in tokens.
        context: The context length with which the model is opened, in tokens.
        predictors: The number of blocks for multi-token prediction. The key `block_count` includes
            them.
    """

    def __init__(
        self,
        gguf: GGUFFile,
        context_length: int | None = None,
        assumed: Collection[str] = (),
        *,
        nextn: bool = False,
    ):
        """Reads the number of blocks and the context length.

        Args:
            gguf: The file.
            context_length: The context length in tokens with which the model is opened. Default:
                the context length of the training.
            assumed: Missing keys for which `get` returns an assumed value. Reading then continues
                and finds further missing keys.
            nextn: Whether to read the blocks for multi-token prediction.
        """
        self._assumed = assumed
        self._metadata, self._prefix = gguf.metadata, f"{gguf.architecture}."
        self.path, self.tensors, self.architecture = gguf.path, gguf.tensors, gguf.architecture
        self.seen: set[str] = set()
        self._blocks = self._block_count()
        self.predictors = self.integer("nextn_predict_layers", 0, low=0, high=self._blocks - 1)
        self.layers = self._blocks - self.predictors
        self.blocks = self._blocks if nextn else self.layers
        self.trained_context = self.integer("context_length")
        self.context = self.trained_context if context_length is None else context_length

    def _block_count(self) -> int:
        """Returns the number of blocks; raises GGUFError if the file has fewer tensors."""
        blocks = self.integer("block_count")
        if blocks > max(len(self.tensors), 1):
            raise GGUFError(
                f"{self.path}: {self._prefix}block_count is {blocks}, the file has"
                f" {len(self.tensors)} tensors"
            )
        return blocks

    def _name(self, key: str) -> str:
        """Returns the name of a key in the file."""
        return key if key.startswith(_WITHOUT_PREFIX) else self._prefix + key

    def get(self, key: str) -> Any:
        """Returns the unchecked value of a key, or None, and records that the key was read."""
        name = self._name(key)
        self.seen.add(name)
        value = self._metadata.get(name)
        if value is None and key in self._assumed:
            return 64 if key.endswith("length") else 8
        return value

    def integer(
        self, key: str, default: int | None = None, low: int = 1, high: int = 2**31 - 1
    ) -> int:
        """Returns an integer from `low` to `high`; accepts a per-layer array of equal entries."""
        value = self.get(key)
        if self._is_per_layer(value) and (value == value[0]).all():
            value = value[0].item()
        return self._integer(key, value, default, low, high)

    def integers(
        self, key: str, default: int | None = None, low: int = 1, high: int = 2**31 - 1
    ) -> tuple[int, ...]:
        """Returns one integer per layer, read from an array or from a single value.

        An entry of an array may be 0, which means that the layer lacks the feature.
        """
        value = self.get(key)
        if not self._is_per_layer(value):
            return (self._integer(key, value, default, low, high),) * self.blocks
        entries = [self._integer(key, entry, None, 0, high) for entry in value.tolist()]
        return tuple(entries[: self.blocks])

    def _is_per_layer(self, value) -> bool:
        blocks = self._metadata.get(self._prefix + "block_count")
        return (
            isinstance(value, np.ndarray) and isinstance(blocks, int) and 0 < len(value) == blocks
        )

    def _integer(self, key, value, default, low, high) -> int:
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            each = ""
            if isinstance(value, np.ndarray) and key != "block_count":
                each = f", or an array of one for each of the {self._blocks} blocks"
            self._refuse(key, f"an integer from {low} to {high}{each}", value)
        return value

    def _refuse(self, key: str, wanted: str, value: Any) -> NoReturn:
        """Raises GGUFError for a wrong value, or MissingKeyError for a missing one."""
        problem = f"{self._name(key)} must be {wanted}, {_found(value)}"
        if value is None:
            raise MissingKeyError(self.path, key, problem)
        raise GGUFError(f"{self.path}: {problem}")

    def numbers(self, key: str, count: int) -> tuple[int, ...]:
        """Returns `count` integers of at least 0 from an array; pads a shorter array with 0."""
        value = self.get(key)
        if value is None:
            return (0,) * count
        integers = isinstance(value, np.ndarray) and value.dtype.kind in "iu"
        if not integers or len(value) > count or min(value, default=0) < 0:
            self._refuse(key, f"an array of up to {count} integers from 0", value)
        return (*value.tolist(), *(0,) * (count - len(value)))

    def real(
        self, key: str, default: float | None = None, low: float = 0.0, *, above: bool = True
    ) -> float:
        """Returns a finite number above `low`, or with above=False, at least `low`."""
        return self._real(key, default, low, above)

    def optional_real(self, key: str, default: float = 0.0) -> float | None:
        """Returns a positive number, or None for 0, which means that the feature is off."""
        return self._real(key, default, 0.0, above=False) or None

    def _real(self, key, default, low, above) -> float:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            if value > low or (value == low and not above):
                return float(value)
        kind = "finite number above" if above else "finite number from"
        self._refuse(key, f"a {kind} {low}", value)

    def reals(self, key: str, default: Sequence[float] | None = None) -> tuple[float, ...]:
        """Returns one number per layer, from a single number or an array; may be infinite."""
        value: Any = self.get(key)
        if value is None and default is not None:
            return tuple(default)
        if isinstance(value, float):
            each = [value] * self.blocks
        elif (
            isinstance(value, np.ndarray) and self._is_per_layer(value) and value.dtype.kind == "f"
        ):
            each = value[: self.blocks].tolist()
        else:
            each = [math.nan]
        if any(map(math.isnan, each)):
            wanted = f"a float, or an array of one for each of the {self._blocks} blocks"
            self._refuse(key, wanted, value)
        return tuple(each)

    def text(self, key: str, default: str) -> str:
        """Returns a string."""
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            self._refuse(key, "a string", value)
        return default if value is None else value

    def flag(self, key: str, default: bool) -> bool:
        """Returns a bool."""
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            self._refuse(key, "a bool", value)
        return default if value is None else value

    def flags(self, key: str) -> tuple[bool, ...]:
        """Returns one bool per layer, from a single bool or an array of bools or integers."""
        value = self.get(key)
        if isinstance(value, bool):
            return (value,) * self.blocks
        if not self._is_per_layer(value) or value.dtype.kind not in "biu":
            each = f"an array of a bool or an integer for each of the {self._blocks} blocks"
            found = f", not of {value.dtype}" if isinstance(value, np.ndarray) else ""
            self._refuse(key, f"a bool, or {each}{found}", value)
        return tuple(bool(entry) for entry in value[: self.blocks])

    def windows(
        self,
        period: int,
        default: int | None = None,
        *,
        optional: bool = False,
        full_first: bool = False,
    ) -> tuple[int | None, ...]:
        """Returns the attention window of each layer, None for full attention.

        Args:
            period: The default period of the pattern. One layer per period has full attention.
            default: The default size of a window in tokens. None: the file must have the key.
            optional: Whether a file may lack the key or set it to 0, which means no windows.
            full_first: Whether the first layer of a period has full attention, not the last one.
        """
        key = "attention.sliding_window"
        window = self.integer(key, 0, low=0) if optional else self.integer(key, default)
        key = "attention.sliding_window_pattern"
        pattern = self.get(key)
        if self._is_per_layer(pattern):
            windowed = self.flags(key)
        else:
            period = self._integer(key, pattern, period, 0, 2**31 - 1)
            full = 0 if full_first else period - 1
            windowed = [period == 0 or i % period != full for i in range(self.blocks)]
        return tuple(window if is_windowed and window else None for is_windowed in windowed)

    def has(self, layer: int, tensor: str) -> bool:
        """Returns whether a layer has a tensor, such as "attn_qkv.weight"."""
        return f"blk.{layer}.{tensor}" in self.tensors

    def inputs(self, layer: int, tensor: str) -> int:
        """Returns the number of inputs of a layer's matrix, or 0 if the file does not have it."""
        found = self.tensors.get(f"blk.{layer}.{tensor}")
        return 0 if found is None else found.shape[-1]

    def outputs(self, layer: int, tensor: str) -> int:
        """Returns the number of outputs of a layer's matrix, or 0 if the file does not have it."""
        found = self.tensors.get(f"blk.{layer}.{tensor}")
        return 0 if found is None else found.shape[0]

    def named(self, layer: int | None, suffix: str) -> frozenset[str]:
        """Returns the names of the modules that have a tensor with a suffix.

        Args:
            layer: The number of the layer, or None for the modules outside of the layers.
            suffix: The last part of the tensor's name, such as "bias".
        """
        if self._by_place is None:
            self._by_place = _by_place(self.tensors)
        return frozenset(self._by_place.get((layer, suffix), ()))

    _by_place: dict[tuple[int | None, str], list[str]] | None = None

    def vector(self, name: str) -> tuple[float, ...] | None:
        """Returns the numbers of an F32 vector, or None if the file does not have it."""
        tensor = self.tensors.get(name)
        if tensor is None:
            return None
        if tensor.format.name != "F32" or math.prod(tensor.shape) != max(tensor.shape):
            raise GGUFError(f"{self.path}: {name} must be an F32 vector, got {tensor}")
        return tuple(tensor.data.view(np.dtype("<f4")).ravel().tolist())

    def unread(self) -> Mapping[str, Any]:
        """Returns the architecture's keys that no getter has read, without the prefix."""
        return {
            key.removeprefix(self._prefix): value
            for key, value in self._metadata.items()
            if key.startswith(self._prefix) and key not in self.seen
        }


def _by_place(tensors) -> dict[tuple[int | None, str], list[str]]:
    """Groups the names of modules by layer (None: outside of the layers) and suffix."""
    places: dict[tuple[int | None, str], list[str]] = {}
    for name in tensors:
        head, _, suffix = name.rpartition(".")
        layer = None
        if head.startswith("blk."):
            number, _, head = head.removeprefix("blk.").partition(".")
            layer = int(number) if number.isdecimal() and len(number) < 10 else -1
        places.setdefault((layer, suffix), []).append(head)
    return places


def _found(value) -> str:
    if value is None:
        return "the file has no such key"
    text = (
        f"an array of {len(value)}"
        if hasattr(value, "__len__") and not isinstance(value, str)
        else quoted(value)
    )
    return f"the file has {text}"
