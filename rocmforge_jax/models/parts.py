"""What a mixer and a feed-forward are: data that computes with the weights of a layer."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from rocmforge_jax.models.make import Make
from rocmforge_jax.nn import RopeConfig, State, Visible


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
    """What a layer has to know about the T tokens that it computes.

    Attributes:
        positions_BT: int32, for everything that depends on the position.
        starts_B: int32, the tokens that the state holds already.
        lengths_B: int32, how many of the T tokens are real; the rest is padding. None: all.
        rope: The `rope_table` of the layer's rotary embedding. None: the layer makes it.
        inputs_BTP: The layer's input beside the residual stream, for a `PerLayerInput`.
        visible: A mask in place of the causal rule, or None.
    """

    positions_BT: jax.Array
    starts_B: jax.Array
    lengths_B: jax.Array | None = None
    rope: tuple[jax.Array, jax.Array] | None = None
    inputs_BTP: jax.Array | None = None
    visible: Visible | None = None

    @classmethod
    def first(cls, batch: int, count: int) -> "Tokens":
        """Describes the first `count` tokens of each text of a batch."""
        positions_BT = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), (batch, count))
        return cls(positions_BT, jnp.zeros((batch,), jnp.int32))


class Mixer(Protocol):
    """Mixes tokens: attention, a convolution, a recurrence.

    A mixer is a frozen, hashable dataclass of sizes and options. The weights are in the layer.
    """

    @property
    def output(self) -> str | None:
        """The name of the projection that follows, or None where the result is final."""
        ...

    @property
    def rope(self) -> RopeConfig | None:
        """The rotary embedding, whose table layers share, or None."""
        ...

    @property
    def source(self) -> int | None:
        """The number of an earlier layer whose new state the mixer reads, or None."""
        ...

    def modules(self, make: Make) -> Mapping[str, nnx.Module | nnx.Param]:
        """Makes the submodules of a layer, by their names in the file.

        A parameter is a tensor whose name in the file has no suffix.
        """
        ...

    def init_state(self, batch: int, length: int, dtype) -> State:
        """Makes the empty state of `batch` sequences of up to `length` tokens."""
        ...

    def __call__(self, layer: Any, x_BTD, norm, tokens: Tokens, state: Any) -> tuple[Any, Any]:
        """Computes what goes into the output projection, and the new state.

        Args:
            layer: The layer with the submodules. The mixer is its configuration and has no weights.
            x_BTD: The residual stream.
            norm: The norm before the mixer, or None. It is not applied yet: `nn.products` fuses it
                with the projections.
            tokens: Positions and lengths.
            state: Of the tokens before, or None: then these tokens are the whole text. With a
                source, the new state of that layer.
        """
        ...

    def workspace(self, tokens: int, slots: int) -> int:
        """Estimates the float32 numbers of the largest temporaries for one prompt."""
        ...


class FeedForward(Protocol):
    """What each token goes through by itself. Like a Mixer, it holds no weights."""

    @property
    def output(self) -> str | None:
        """The name of the projection that follows, or None where the result is final."""
        ...

    def modules(self, make: Make) -> Mapping[str, nnx.Module]:
        """Makes the submodules of a layer, by their names in the file."""
        ...

    def __call__(self, layer: Any, x_BTD, norm) -> Any:
        """Computes what goes into the output projection, from norm(x)."""
        ...

    def workspace(self, tokens: int) -> int:
        """Estimates the float32 numbers of the largest temporaries for one prompt."""
        ...
