"""The interfaces of mixers and feed-forwards, which compute with the weights of a layer."""

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
    """The properties of T tokens that a layer needs to compute them.

    Attributes:
        positions_BT: int32, the positions of the tokens.
        starts_B: int32, the number of earlier tokens in the state.
        lengths_B: int32, the number of real tokens of each sequence, before its padding. None: all
            T are real.
        rope: The `rope_table` of the layer's rotary embedding. None: the layer computes it.
        inputs_BTP: The layer's own input for a `PerLayerInput`, or None.
        visible: A mask that replaces the causal rule, or None.
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
    """The part of a layer that mixes tokens: attention, a convolution or a recurrence.

    A mixer is a frozen, hashable dataclass of sizes and options. The layer contains the weights.
    """

    @property
    def output(self) -> str | None:
        """The name of the projection of the result, or None if the result needs no projection."""
        ...

    @property
    def rope(self) -> RopeConfig | None:
        """The rotary embedding, or None. Layers with an equal one share its table."""
        ...

    @property
    def source(self) -> int | None:
        """The number of an earlier layer whose new state the mixer reads, or None."""
        ...

    def modules(self, make: Make) -> Mapping[str, nnx.Module | nnx.Param]:
        """Makes the mixer's submodules of a layer, by their names in the file.

        A tensor whose name in the file has no suffix is a parameter, not a module.
        """
        ...

    def init_state(self, batch: int, length: int, dtype) -> State:
        """Makes the empty state of `batch` sequences of up to `length` tokens."""
        ...

    def __call__(self, layer: Any, x_BTD, norm, tokens: Tokens, state: Any) -> tuple[Any, Any]:
        """Computes the input of the output projection, and the new state.

        Args:
            layer: The layer that contains the mixer's submodules.
            x_BTD: The residual stream.
            norm: The norm before the mixer, or None. The mixer must apply it; `nn.products` can
                fuse it with the projections.
            tokens: Positions and lengths.
            state: The state after the earlier tokens. None: there are no earlier tokens. If the
                mixer has a `source`, it is the new state of that layer.
        """
        ...

    def workspace(self, tokens: int, slots: int) -> int:
        """Estimates the size of the largest temporaries of one prompt, in float32 numbers."""
        ...


class FeedForward(Protocol):
    """The part of a layer that computes each token separately. Like a Mixer, it has no weights."""

    @property
    def output(self) -> str | None:
        """The name of the projection of the result, or None if the result needs no projection."""
        ...

    def modules(self, make: Make) -> Mapping[str, nnx.Module]:
        """Makes the feed-forward's submodules of a layer, by their names in the file."""
        ...

    def __call__(self, layer: Any, x_BTD, norm) -> Any:
        """Computes the input of the output projection from norm(x)."""
        ...

    def workspace(self, tokens: int) -> int:
        """Estimates the size of the largest temporaries of one prompt, in float32 numbers."""
        ...
