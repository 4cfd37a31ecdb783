"""The configuration of a decoder: a tuple of layers, each with a mixer and a feed-forward."""

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
        mixer: Mixes tokens, for example by attention, or None.
        feed_forward: Computes each token separately, or None.
        norms: The norms of the layer and their places.
        residual_scale: Factor of the results that are added to the residual stream.
        parallel: Whether the feed-forward reads the input of the mixer, not the sum with the
            mixer's result.
        biases: Names of the submodules that have a bias.
        output_scales: Names of the submodules whose product is multiplied by a learned factor.
        per_layer_input: How the layer uses its own input in addition to the residual stream, or
            None.
        laurel: A low-rank residual connection parallel to the mixer, or None.
        altup: How the layer updates several residual streams; None for a single stream.
        output_factor: Whether a learned number multiplies the result (layer_output_scale).
        unused: Names of submodules that the layer does not have, although files may contain their
            tensors.
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
    """A block for multi-token prediction: a layer with its own input projection and output.

    Attributes:
        layer: The layer.
        own_embedding: Whether the block has its own embedding; otherwise it uses the decoder's.
        own_head: Whether the block has its own head; otherwise it uses the decoder's.
        norm: The name of the norm before the head, or None for the decoder's norm.
    """

    layer: LayerConfig
    own_embedding: bool = False
    own_head: bool = False
    norm: Literal["nextn.shared_head_norm", "layer_output_norm"] | None = None


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The configuration of a Decoder. Hashable, so that it can be static metadata of the module.

    Attributes:
        layers: The layers, in order.
        width: The width of the residual stream, D.
        vocabulary: Rows of the embedding, V.
        context_length: The context length of the training, in tokens.
        norm_epsilon: Epsilon of the norm before the head.
        norm_kind: Kind of the norm before the head: see `Norms`.
        tied: Whether the head is the transposed embedding.
        embedding_scale: Factor of the embeddings.
        logit_scale: Factor of the logits.
        logit_cap: Soft cap c of the logits, c * tanh(logit / c), or None.
        output_norm: The name of the norm after the layers, as in the file, or None.
        has_head: Whether the model computes logits. An encoder may have no head.
        positions: Rows of the learned position embeddings (position_embd), 0 for none.
        token_types: Rows of the embeddings of token types (token_types), 0 for none. All tokens of
            a text have the first type.
        embedding_norm: The name of the norm of the embeddings, as in the file, or None.
        pooling: The pooling that the file names, see `nn.pool`; None if it names none.
        embedding_head: The layers after pooling.
        biases: Names of the modules outside of the layers that have a bias.
        output_scales: Names of the modules outside of the layers whose product is multiplied by a
            learned factor: the head.
        architecture: The name of the architecture.
        nextn: The loaded blocks for multi-token prediction, in order.
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
        """Whether no token sees later tokens, so that text can be generated token by token."""
        return all(getattr(layer.mixer, "causal", True) for layer in self.layers)

    def text_length(self, context_length: int) -> int:
        """Returns the most tokens of a text in a context: learned positions are limited."""
        return min(context_length, self.positions or context_length)

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
        """The width of the per-layer inputs, 0 without any."""
        return max(self._input_widths, default=0)

    @property
    def _streams(self) -> set[int]:
        return {1 if layer.altup is None else layer.altup.streams for layer in self.layers}

    @property
    def streams(self) -> int:
        """The number of residual streams, the same for every layer."""
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
        """Makes the configuration of a decoder with identical layers.

        Args:
            layers: The number of layers.
            mixer: The mixer of every layer.
            feed_forward: The feed-forward of every layer.
            norm_epsilon: Epsilon of all norms.
            norms: Fields of every layer's `Norms` that differ from the defaults.
            biases: Names of the submodules of every layer that have a bias.
            **sizes: The other fields of `DecoderConfig`.
        """
        kinds = dict(kind=sizes.get("norm_kind", "rms")) | (norms or {})
        layer = LayerConfig(mixer, feed_forward, Norms(norm_epsilon, **kinds), biases=biases)
        return cls((layer,) * layers, norm_epsilon=norm_epsilon, **sizes)


def _check_sources(layers: tuple[LayerConfig, ...]) -> None:
    """Raises ValueError unless each `source` is an earlier layer with a fitting KV cache."""
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
