"""An adapter of one layer as files hold it, and how a model takes many of them."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from rocmforge_jax.adapters.wrap import adaptable, adapted, adapters, replaced, why_not
from rocmforge_jax.gguf.errors import listed
from rocmforge_jax.models import Decoder
from rocmforge_jax.nn.lora import Adapter, refuse_flax_adapters


@dataclasses.dataclass(frozen=True)
class Pair:
    """The two matrices of an adapter, as PEFT and llama.cpp store them.

    Attributes:
        a: float32 [rank, in]; of experts [E, rank, in].
        b: float32 [out, rank]; of experts [E, out, rank].
        scale: The factor of b @ a.
    """

    a: np.ndarray
    b: np.ndarray
    scale: float

    @property
    def rank(self) -> int:
        """Rows of a, or of a matrix of it."""
        return self.a.shape[-2]

    @property
    def alpha(self) -> float:
        """The scale times the rank."""
        return self.scale * self.rank


def pairs_of(model: Decoder) -> dict[str, Pair]:
    """Returns the adapters of a model by the names of the layers' tensors.

    Raises ValueError where there is none.
    """
    found = adapters(model)
    refuse_flax_adapters(model, "save_lora")
    if not found:
        raise ValueError("the model has no adapter to save: rocmforge_jax.lora makes one")

    def stored(matrix):
        values = np.asarray(matrix.get_value().astype(jnp.float32))
        return np.ascontiguousarray(values.swapaxes(-1, -2))

    return {
        name: Pair(stored(layer.lora_a), stored(layer.lora_b), layer.scale)
        for name, layer in found.items()
    }


def with_pairs(model: Decoder, pairs: dict[str, Pair], source: str, dtype: Any) -> Decoder:
    """Returns a model with these adapters; it shares every array with `model`.

    Args:
        model: A decoder without adapters.
        pairs: The name of a layer's tensor -> its adapter.
        source: The name of the file, for error messages.
        dtype: The dtype of the adapters in the model.

    Raises:
        ValueError: The model has adapters already, layers are missing, or sizes do not fit. The
            error counts all problems.
    """
    layers = adaptable(model)
    if present := [name for name, layer in layers.items() if isinstance(layer, Adapter)]:
        raise ValueError(
            f"{len(present)} layers have an adapter already, such as {present[0]}: use merge_lora"
            " or remove_lora first"
        )
    if problems := [p for name, pair in pairs.items() for p in _problems(name, pair, layers)]:
        config = model.config
        raise ValueError(
            f"{source} does not fit this {config.architecture} model of {len(config.layers)} layers"
            f" and width {config.width}, {len(problems)} problems: {listed(problems, most=2)}"
        )

    def adapted_layer(name, layer):
        if name not in pairs:
            return layer
        pair = pairs[name]
        new = adapted(layer, pair.rank, alpha=pair.alpha, dtype=dtype, rngs=nnx.Rngs(0))
        new.lora_a.set_value(jnp.asarray(pair.a.swapaxes(-1, -2), dtype))
        new.lora_b.set_value(jnp.asarray(pair.b.swapaxes(-1, -2), dtype))
        return new

    return replaced(model, adapted_layer)


def _problems(name: str, pair: Pair, layers) -> list[str]:
    layer = layers.get(name)
    if layer is None:
        return [f"the model has no linear layer {name}"]
    if why := why_not(name, layer):
        return [why]
    *stack, n_in, n_out = layer.kernel.shape
    if not len(stack) + 2 == pair.a.ndim == pair.b.ndim or not pair.a.size:
        return [f"{name} has matrices of shapes {list(pair.a.shape)} and {list(pair.b.shape)}"]
    found = list(pair.a.shape), list(pair.b.shape)
    expected = [*stack, pair.rank, n_in], [*stack, n_out, pair.rank]
    problems = []
    if found != expected:
        of_each = "E, " * len(stack)
        problems.append(
            f"{name} has matrices [{of_each}rank, in] {found[0]} and [{of_each}out, rank]"
            f" {found[1]}, expected {expected[0]} and {expected[1]}"
        )
    if not math.isfinite(pair.scale):
        problems.append(f"{name} has the scale {pair.scale}")
    return problems


def matched(tensors: dict[str, tuple[Any, Any]]) -> list[str]:
    """Returns what to say of names of which one matrix is there and the other is not."""
    return [
        f"{name} has only {'the first' if b is None else 'the second'} of its two matrices"
        for name, (a, b) in tensors.items()
        if a is None or b is None
    ]
