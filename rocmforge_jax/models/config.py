"""A decoder as data: a tuple of layers, each a mixer and a feed-forward."""

import dataclasses
from typing import Any, Literal

from rocmforge_jax.models.altup import AltUp
from rocmforge_jax.models.embedding_head import EmbeddingHead
from rocmforge_jax.models.laurel import Laurel
from rocmforge_jax.models.make import Norms, check_epsilon
from rocmforge_jax.models.parts import FeedForward, Mixer
from rocmforge_jax.models.per_layer_input import PerLayerInput


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
        per_layer_input: How the layer reads its own input beside the residual stream, or None.
        laurel: A residual connection of low rank beside the mixer, or None.
        altup: How the layer treats several residual streams, None for a single one.
        output_factor: Whether a learned number multiplies the result (layer_output_scale).
        unused: Names of submodules whose tensors a file may have and the layer does not.
    """

    mixer: Mixer | None
    feed_forward: FeedForward | None
    norms: Norms
    residual_scale: float = 1.0
    parallel: bool = False
    biases: frozenset[str] = frozenset()
    output_scales: frozenset[str] = frozenset()
    per_layer_input: PerLayerInput | None = None
    laurel: Laurel | None = None
    altup: AltUp | None = None
    output_factor: bool = False
    unused: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class NextNConfig:
    """A block for multi-token prediction: a layer between an input and a head of its own.

    Attributes:
        layer: The layer.
        own_embedding: Whether it embeds tokens by itself, not with the decoder's embedding.
        own_head: Whether it has a head of its own, not the decoder's.
        norm: The name of the norm before the head, or None for the decoder's.
    """

    layer: LayerConfig
    own_embedding: bool = False
    own_head: bool = False
    norm: Literal["nextn.shared_head_norm", "layer_output_norm"] | None = None


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
        output_norm: Name of the norm after the layers in the file, or None.
        has_head: Whether there are logits. An encoder may have none.
        positions: Rows of the learned embeddings of positions (position_embd), 0 for none.
        token_types: Rows of the embeddings of token types (token_types), 0 for none. All tokens of
            a text are of the first type.
        embedding_norm: Name of the norm of the embeddings in the file, or None.
        pooling: How the file says that the states of a text become one vector: see `nn.pool`. None
            where it does not say.
        embedding_head: What pooled vectors go through.
        biases: As in LayerConfig, for the head and the norm before it.
        output_scales: As in LayerConfig, for the head.
        architecture: The name of the family.
        nextn: The blocks for multi-token prediction that are loaded, in order.
    """

    layers: tuple[LayerConfig, ...]
    width: int
    vocabulary: int
    context_length: int
    norm_epsilon: float
    norm_kind: Literal["rms", "layer", "unit_layer"] = "rms"
    tied: bool = True
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_cap: float | None = None
    output_norm: str | None = "output_norm"
    has_head: bool = True
    positions: int = 0
    token_types: int = 0
    embedding_norm: str | None = None
    pooling: str | None = None
    embedding_head: EmbeddingHead = EmbeddingHead()
    biases: frozenset[str] = frozenset()
    output_scales: frozenset[str] = frozenset()
    architecture: str = "llama"
    nextn: tuple[NextNConfig, ...] = ()

    def __post_init__(self):
        if not self.layers:
            raise ValueError("layers must be at least 1, got 0")
        for name in ("width", "vocabulary", "context_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_epsilon(self.norm_epsilon)
        _check_sources(self.layers)
        if len(widths := self._input_widths) > 1:
            raise ValueError(f"inputs of layers differ in their width: {sorted(widths)}")
        if len(streams := self._streams) > 1:
            raise ValueError(f"layers differ in their residual streams: {sorted(streams)}")

    @property
    def causal(self) -> bool:
        """Whether no token sees later ones, so that text can be generated token by token."""
        return all(getattr(layer.mixer, "causal", True) for layer in self.layers)

    @property
    def embedding_width(self) -> int:
        """The width of pooled vectors."""
        return self.embedding_head.width or self.width

    @property
    def _input_widths(self) -> set[int]:
        inputs = (layer.per_layer_input for layer in self.layers)
        return {one.width for one in inputs if one is not None}

    @property
    def input_width(self) -> int:
        """The width of the layers' own inputs beside the residual stream, 0 without any."""
        return max(self._input_widths, default=0)

    @property
    def _streams(self) -> set[int]:
        return {1 if layer.altup is None else layer.altup.streams for layer in self.layers}

    @property
    def streams(self) -> int:
        """The residual streams of every layer."""
        return max(self._streams)

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


def _check_sources(layers: tuple[LayerConfig, ...]) -> None:
    """Raises ValueError unless layers without keys and values attend to layers that lend theirs."""
    for i, layer in enumerate(layers):
        source = None if layer.mixer is None else layer.mixer.source
        if source is None:
            continue
        lender: Any = layers[source].mixer if source < i else None
        if not getattr(lender, "lends", False):
            raise ValueError(
                f"layer {i} attends to the keys and values of layer {source}: that must be an"
                " earlier layer that lends them"
            )
        borrower: Any = layer.mixer
        found, needed = ((one.kv_heads, one.head_width, one.window) for one in (lender, borrower))
        if found != needed:
            raise ValueError(
                f"layer {i} needs KV heads, head width and window of {needed}, layer {source} has"
                f" {found}"
            )
