"""A decoder as data: a tuple of layers, each a mixer and a feed-forward."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from rocmforge_jax.backends import Numerics
from rocmforge_jax.nn import Experts, LayerNorm, Linear, RMSNorm, RopeConfig, State


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
    """What a layer has to know about the T tokens that it computes.

    Attributes:
        positions_BT: int32, for everything that depends on the position.
        starts_B: int32, the tokens that the state holds already.
        lengths_B: int32, how many of the T tokens are real; the rest is padding. None: all.
        rope: The `rope_table` of the layer's rotary embedding. None: the layer makes it.
    """

    positions_BT: jax.Array
    starts_B: jax.Array
    lengths_B: jax.Array | None = None
    rope: tuple[jax.Array, jax.Array] | None = None

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
    def output(self) -> str:
        """The name of the projection that follows, such as "attn_output"."""
        ...

    @property
    def rope(self) -> RopeConfig | None:
        """The rotary embedding, whose table layers share, or None."""
        ...

    def modules(self, make: "Make") -> Mapping[str, nnx.Module]:
        """Makes the submodules of a layer, by their names in the file."""
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
            state: Of the tokens before, or None: then these tokens are the whole text.
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

    def modules(self, make: "Make") -> Mapping[str, nnx.Module]:
        """Makes the submodules of a layer, by their names in the file."""
        ...

    def __call__(self, layer: Any, x_BTD, norm) -> Any:
        """Computes what goes into the output projection, from norm(x)."""
        ...

    def workspace(self, tokens: int) -> int:
        """Estimates the float32 numbers of the largest temporaries for one prompt."""
        ...


@dataclasses.dataclass(frozen=True)
class Norms:
    """The norms of a layer, by their names in the file; None where there is none.

    Families use one name for different places: `post_attention_norm` comes after the mixer in
    Gemma and before the feed-forward in gpt-oss. One norm may stand in two places.

    Attributes:
        epsilon: Of all norms of the layer.
        kind: "rms", or "layer" for norms that subtract the mean.
        before_mixer: Applied to the residual stream before the mixer.
        after_mixer: Applied to what the mixer adds.
        before_feed_forward: Applied to the residual stream before the feed-forward.
        after_feed_forward: Applied to what the feed-forward adds.
    """

    epsilon: float
    kind: Literal["rms", "layer"] = "rms"
    before_mixer: str | None = "attn_norm"
    after_mixer: str | None = None
    before_feed_forward: str | None = "ffn_norm"
    after_feed_forward: str | None = None

    def __post_init__(self):
        check_epsilon(self.epsilon)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the norms that there are."""
        places = (
            self.before_mixer,
            self.after_mixer,
            self.before_feed_forward,
            self.after_feed_forward,
        )
        return tuple(dict.fromkeys(name for name in places if name is not None))

    def make(self, width: int, use_bias: bool) -> RMSNorm | LayerNorm:
        """Makes a norm of this kind."""
        return make_norm(self.kind, width, self.epsilon, use_bias)


@dataclasses.dataclass(frozen=True)
class LayerConfig:
    """One layer of a decoder.

    Attributes:
        mixer: Mixes tokens, or None.
        feed_forward: Computes each token by itself, or None.
        norms: Which norms there are, and where.
        residual_scale: Multiplies what mixer and feed-forward add to the residual stream.
        parallel: Whether the feed-forward reads what the mixer reads, not what it gives.
        biases: Names of the submodules that have a bias.
        output_scales: Names of the submodules whose product is multiplied by a factor.
    """

    mixer: Mixer | None
    feed_forward: FeedForward | None
    norms: Norms
    residual_scale: float = 1.0
    parallel: bool = False
    biases: frozenset[str] = frozenset()
    output_scales: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Everything that shapes a Decoder. Hashable, so it is static metadata of the module.

    Attributes:
        layers: The layers, in order.
        width: Of the residual stream, D.
        vocabulary: Rows of the embedding, V.
        context_length: Positions that the model was trained for.
        norm_epsilon: Of the norm before the head.
        norm_kind: Of the norm before the head: see `Norms`.
        tied: Whether the head is the transposed embedding.
        embedding_scale: Multiplies embeddings.
        logit_scale: Multiplies logits.
        logit_cap: A cap c that makes c * tanh(logit / c) of each logit, or None.
        output_norm: Name of the norm before the head in the file.
        biases: As in LayerConfig, for the head and the norm before it.
        output_scales: As in LayerConfig, for the head.
        architecture: The name of the family.
    """

    layers: tuple[LayerConfig, ...]
    width: int
    vocabulary: int
    context_length: int
    norm_epsilon: float
    norm_kind: Literal["rms", "layer"] = "rms"
    tied: bool = True
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_cap: float | None = None
    output_norm: str = "output_norm"
    biases: frozenset[str] = frozenset()
    output_scales: frozenset[str] = frozenset()
    architecture: str = "llama"

    def __post_init__(self):
        if not self.layers:
            raise ValueError("layers must be at least 1, got 0")
        for name in ("width", "vocabulary", "context_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_epsilon(self.norm_epsilon)

    @classmethod
    def uniform(
        cls,
        layers: int,
        mixer: Mixer | None,
        feed_forward: FeedForward | None,
        *,
        norm_epsilon: float,
        norms: dict[str, Any] | None = None,
        biases: frozenset[str] = frozenset(),
        **sizes: Any,
    ) -> "DecoderConfig":
        """Makes the configuration of a decoder whose layers are all alike.

        Args:
            layers: How many.
            mixer: Of every layer.
            feed_forward: Of every layer.
            norm_epsilon: Of all norms.
            norms: Changes of the `Norms` of every layer.
            biases: Of every layer.
            **sizes: The other fields.
        """
        kinds = dict(kind=sizes.get("norm_kind", "rms")) | (norms or {})
        layer = LayerConfig(mixer, feed_forward, Norms(norm_epsilon, **kinds), biases=biases)
        return cls((layer,) * layers, norm_epsilon=norm_epsilon, **sizes)


def check_epsilon(epsilon: float) -> None:
    """Raises ValueError unless the epsilon of a norm is finite and not negative."""
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise ValueError(f"norm_epsilon must be finite and not negative, got {epsilon}")


def check_sizes(**sizes: int) -> None:
    """Raises ValueError, with the name, for a size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def check_width(expected: int, found: int) -> None:
    """Raises ValueError unless a part of a layer was made for the width of the model."""
    if expected != found:
        raise ValueError(f"a layer for width {expected} is in a model of width {found}")


@dataclasses.dataclass(frozen=True)
class Make:
    """Makes the submodules of one layer, with the biases and factors that the layer has."""

    config: LayerConfig
    width: int
    numerics: Numerics
    rngs: nnx.Rngs | None

    def linear(self, name: str, inputs: int, outputs: int) -> Linear:
        """Makes the linear layer that the file calls `name`."""
        return Linear(
            inputs,
            outputs,
            use_bias=name in self.config.biases,
            use_output_scale=name in self.config.output_scales,
            numerics=self.numerics,
            rngs=self.rngs,
        )

    def experts(self, name: str, count: int, inputs: int, outputs: int) -> Experts:
        """Makes the stack of linear layers that the file calls `name`."""
        return Experts(
            count,
            inputs,
            outputs,
            use_bias=name in self.config.biases,
            use_output_scale=name in self.config.output_scales,
            numerics=self.numerics,
            rngs=self.rngs,
        )

    def norm(self, name: str, width: int) -> RMSNorm | LayerNorm:
        """Makes the norm that the file calls `name`."""
        return self.config.norms.make(width, name in self.config.biases)


def make_norm(kind: str, width: int, epsilon: float, use_bias: bool) -> RMSNorm | LayerNorm:
    """Makes a norm of a kind: see `Norms`. Only a layer norm may have a bias."""
    if kind == "layer":
        return LayerNorm(width, epsilon=epsilon, use_bias=use_bias)
    return RMSNorm(width, epsilon=epsilon)
