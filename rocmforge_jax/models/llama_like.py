"""`llama_like` reads the configuration that nearly all families of decoders share."""

import dataclasses
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.models.config import DecoderConfig, LayerConfig, NextNConfig
from rocmforge_jax.models.feed_forward import Gated, Mixture
from rocmforge_jax.models.keys import KeyReader
from rocmforge_jax.models.make import Norms
from rocmforge_jax.models.mixers import Attention
from rocmforge_jax.models.parts import Mixer
from rocmforge_jax.models.read_attention import attentions
from rocmforge_jax.models.read_feed_forward import feed_forwards


def llama_like(
    keys: KeyReader,
    *,
    interleaved: bool = False,
    norms: dict[str, Any] | None = None,
    attention: dict[str, Any] | None = None,
    gated: dict[str, Any] | None = None,
    mixture: dict[str, Any] | None = None,
    routing: dict[str, Any] | None = None,
    layer: dict[str, Any] | None = None,
    experts_required: bool = False,
    mixer: Callable[[int, Attention | None], Mixer | None] | None = None,
    mixers: Sequence[Mixer | None] | None = None,
    feed_forward_layers: Collection[int] | None = None,
    epsilon: float | None = None,
    **decoder,
) -> DecoderConfig:
    """Reads the configuration of a decoder that resembles Llama.

    The dictionaries contain fields that differ from the defaults or from the file.

    Args:
        keys: The keys of the file.
        interleaved: Whether rotated pairs are adjacent elements of a head (ggml's "norm"), not
            elements of the two halves ("neox").
        norms: Fields of every layer's `Norms`.
        attention: Fields of every `Attention`.
        gated: Fields of every `Gated`.
        mixture: Fields of every `Mixture`.
        routing: Fields of the `Routing` of every mixture.
        layer: Fields of every `LayerConfig`.
        experts_required: Whether a file without experts is an error.
        mixer: Function (layer number, attention) -> mixer, for mixers that differ between layers.
            The attention is None if the layer has no heads.
        mixers: The mixers of all layers, for families without this kind of attention.
        feed_forward_layers: Numbers of the layers with a feed-forward. None: all layers, except
            those with 0 hidden units in the file.
        epsilon: Epsilon of all norms. Default: the value in the file.
        **decoder: Fields of the `DecoderConfig`.
    """
    norm_kind = (norms or {}).get("kind", "rms")
    if epsilon is None:
        rms = "rms_" if norm_kind == "rms" else ""
        epsilon = keys.real(f"attention.layer_norm_{rms}epsilon", above=False)
    if mixers is None:
        of_file = attentions(keys, interleaved, **(attention or {}))
        mixers = of_file if mixer is None else [mixer(i, one) for i, one in enumerate(of_file)]
    if experts_required:
        keys.integer("expert_count")
    feeds = feed_forwards(keys, gated or {}, mixture or {}, routing or {}, feed_forward_layers)
    layers = tuple(
        LayerConfig(
            mixer=mixers[i],
            feed_forward=feeds[i],
            norms=_norms(Norms(epsilon, **(norms or {})), mixers[i], feeds[i]),
            biases=_biases(keys, i),
            output_scales=keys.named(i, "scale"),
            **(layer or {}),
        )
        for i in range(keys.blocks)
    )
    config = DecoderConfig(
        layers=layers[: keys.layers],
        nextn=tuple(_nextn(keys, i, layers[i]) for i in range(keys.layers, keys.blocks)),
        width=keys.integer("embedding_length"),
        vocabulary=vocabulary(keys),
        context_length=keys.trained_context,
        norm_epsilon=epsilon,
        norm_kind=norm_kind,
        tied="output.weight" not in keys.tensors,
        biases=keys.named(None, "bias"),
        output_scales=keys.named(None, "scale"),
    )
    return dataclasses.replace(config, **decoder)


def _nextn(keys: KeyReader, i: int, layer: LayerConfig) -> NextNConfig:
    """Returns block i for multi-token prediction; its tensors determine its optional parts."""
    norms: Any = ("nextn.shared_head_norm", "layer_output_norm")
    return NextNConfig(
        layer,
        own_embedding=keys.has(i, "nextn.embed_tokens.weight"),
        own_head=keys.has(i, "nextn.shared_head_head.weight"),
        norm=next((norm for norm in norms if keys.has(i, f"{norm}.weight")), None),
    )


def _biases(keys: KeyReader, i: int) -> frozenset[str]:
    """Returns the names of a layer's modules that have a bias.

    A file may have a fused attn_qkv but separate biases of q, k and v. Loading joins them.
    """
    names, parts = keys.named(i, "bias"), {"attn_q", "attn_k", "attn_v"}
    if keys.has(i, "exp_probs_b"):  # files of Hunyuan 3 lack the suffix
        names |= {"exp_probs_b"}
    if not keys.has(i, "attn_qkv.weight") or "attn_qkv" in names or not parts <= names:
        return names
    return (names - parts) | {"attn_qkv"}


def _norms(norms: Norms, mixer: Mixer | None, feed_forward: Gated | Mixture | None) -> Norms:
    """Removes the norms of a part that the layer does not have."""
    if mixer is None:
        norms = norms.without("mixer")
    return norms if feed_forward is not None else norms.without("feed_forward")


def vocabulary(keys: KeyReader) -> int:
    """Returns the number of rows of the embedding; warns if the key vocab_size differs from it."""
    embedding = keys.tensors.get("token_embd.weight")
    rows = embedding.shape[0] if embedding is not None and len(embedding.shape) == 2 else None
    if rows is None and keys.get("vocab_size") is None:
        raise GGUFError(f"{keys.path}: the file has no matrix token_embd.weight")
    claimed = keys.integer("vocab_size", rows)
    if rows is not None and claimed != rows:
        warnings.warn(
            f"{keys.path}: {keys.architecture}.vocab_size is {claimed}, token_embd.weight has"
            f" {rows} rows, which count",
            stacklevel=2,
        )
    return rows or claimed
