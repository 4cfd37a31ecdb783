"""The sizes and options of a decoder, and how they are read from a file's metadata."""

import dataclasses
import math

import numpy as np

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.nn.rope import RopeConfig


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Everything that shapes a Decoder. Hashable, so it is static metadata of the module.

    Sizes as in nn.axes: width D, hidden F, heads N, kv_heads K, head_width H, vocabulary V.
    context_length: positions the model was trained for. tied: the head is the transposed embedding.
    moe: the feed-forward is a mixture of experts. The rest is what an `Architecture` says:
    qkv_bias, qk_norm, post_norms, fused_qkv, fused_gate_up.
    """

    layers: int
    width: int
    hidden: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    context_length: int
    norm_epsilon: float
    rope: RopeConfig
    tied: bool = True
    moe: "MoEConfig | None" = None
    qkv_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    fused_qkv: bool = False
    fused_gate_up: bool = False
    architecture: str = "llama"

    def __post_init__(self):
        sizes = (
            "layers",
            "width",
            "hidden",
            "heads",
            "kv_heads",
            "head_width",
            "vocabulary",
            "context_length",
        )
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"the model has {self.heads} heads and {self.kv_heads} KV heads: heads must be a"
                " multiple of KV heads"
            )
        if self.rope.width > self.head_width:
            raise ValueError(
                f"rope rotates {self.rope.width} elements of a head of {self.head_width}"
            )
        if not (math.isfinite(self.norm_epsilon) and self.norm_epsilon >= 0):
            raise ValueError(
                f"norm_epsilon must be finite and not negative, got {self.norm_epsilon}"
            )


@dataclasses.dataclass(frozen=True)
class MoEConfig:
    """A mixture of `experts`, `used` of them for each token, `hidden` units each.

    shared_hidden: units of an expert that every token goes through as well, 0 for none.
    renormalize: see `nn.route`.
    """

    experts: int
    used: int
    hidden: int
    shared_hidden: int = 0
    renormalize: bool = True

    def __post_init__(self):
        if not 1 <= self.used <= self.experts:
            raise ValueError(
                f"each token uses {self.used} of {self.experts} experts: it must be at least 1 and"
                " at most all"
            )


class KeyReader:
    """Reads an architecture's keys from metadata, checks them, and remembers which were read.

    Every getter raises GGUFError naming the file's key, the expected range and the value found.
    """

    def __init__(self, metadata, architecture: str):
        self._metadata, self._prefix = metadata, architecture + "."
        self.seen: set[str] = set()

    def _get(self, key):
        self.seen.add(self._prefix + key)
        return self._metadata.get(self._prefix + key)

    def integer(
        self, key: str, default: int | None = None, low: int = 1, high: int = 2**31 - 1
    ) -> int:
        """Returns an integer from `low` to `high`, or the default where the key is missing."""
        value = self._get(key)
        if self._has_entry_per_layer(value) and (value == value[0]).all():
            value = value[0].item()
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise GGUFError(
                f"{self._prefix}{key} must be an integer from {low} to {high}, {_found(value)}"
            )
        return value

    def _has_entry_per_layer(self, value) -> bool:
        layers = self._metadata.get(self._prefix + "block_count")
        return (
            isinstance(value, np.ndarray)
            and isinstance(layers, int)
            and value.shape == (layers,)
            and layers > 0
        )

    def real(self, key: str, default: float | None = None, low: float = 0.0) -> float:
        """Returns a finite number above `low`, or the default where the key is missing."""
        value = self._get(key)
        if value is None and default is not None:
            return default
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not (math.isfinite(value) and value > low)
        ):
            raise GGUFError(
                f"{self._prefix}{key} must be a finite number above {low}, {_found(value)}"
            )
        return float(value)

    def text(self, key: str, default: str) -> str:
        """Returns a string, or the default where the key is missing."""
        value = self._get(key)
        if value is not None and not isinstance(value, str):
            raise GGUFError(f"{self._prefix}{key} must be a string, {_found(value)}")
        return default if value is None else value

    def unread(self) -> list[str]:
        """Returns the architecture's keys that no getter asked for."""
        return [
            key for key in self._metadata if key.startswith(self._prefix) and key not in self.seen
        ]


def _found(value) -> str:
    if value is None:
        return "the file has no such key"
    text = (
        f"an array of {len(value)}"
        if hasattr(value, "__len__") and not isinstance(value, str)
        else repr(value)
    )
    return f"the file has {text}"
