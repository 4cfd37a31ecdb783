"""Families of models: functions from the keys of a file to the configuration of a decoder.

`llama_like` reads what nearly all of them share; a family changes a few parts of it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.models.config import DecoderConfig, LayerConfig, Mixer, Norms
from rocmforge_jax.models.feed_forward import Gated, Mixture
from rocmforge_jax.models.keys import KeyReader
from rocmforge_jax.models.mixers import Attention
from rocmforge_jax.nn import RopeConfig

#: Norms whose results are added to the residual stream, besides those before.
POST_NORMS = dict(after_mixer="post_attention_norm", after_feed_forward="post_ffw_norm")


def llama_like(
    keys: KeyReader,
    *,
    interleaved: bool = False,
    norms: dict[str, Any] | None = None,
    attention: dict[str, Any] | None = None,
    gated: dict[str, Any] | None = None,
    mixture: dict[str, Any] | None = None,
    layer: dict[str, Any] | None = None,
    required_biases: frozenset[str] = frozenset(),
    mixer: Callable[[int, Attention | None], Mixer | None] | None = None,
    **decoder,
) -> DecoderConfig:
    """Reads the configuration of a decoder that resembles Llama's.

    Args:
        keys: Of the file.
        interleaved: Which elements of a head form a rotated pair (ggml's "norm" if true, "neox"
            if not).
        norms: Changes of the `Norms` of every layer.
        attention: Changes of every `Attention`.
        gated: Changes of every `Gated`.
        mixture: Changes of every `Mixture`.
        layer: Changes of every `LayerConfig`.
        required_biases: Submodules that have a bias whether the file has it or not.
        mixer: (number of a layer, its attention) -> its mixer, for what differs between layers. The
            attention is None where the file counts no KV heads.
        **decoder: Changes of the `DecoderConfig`.
    """
    epsilon = keys.real("attention.layer_norm_rms_epsilon")
    mixers = attentions(keys, interleaved, **(attention or {}))
    if mixer is not None:
        mixers = [mixer(i, one) for i, one in enumerate(mixers)]
    parts = zip(mixers, feed_forwards(keys, gated or {}, mixture or {}))
    layers = tuple(
        LayerConfig(
            *of_layer,
            norms=Norms(epsilon, **(norms or {})),
            biases=keys.named(i, "bias") | required_biases,
            output_scales=keys.named(i, "scale"),
            **(layer or {}),
        )
        for i, of_layer in enumerate(parts)
    )
    config = DecoderConfig(
        layers=layers,
        width=keys.integer("embedding_length"),
        vocabulary=vocabulary(keys),
        context_length=keys.integer("context_length"),
        norm_epsilon=epsilon,
        tied="output.weight" not in keys.tensors,
        biases=keys.named(None, "bias"),
        output_scales=keys.named(None, "scale"),
    )
    return dataclasses.replace(config, **decoder)


def attentions(keys: KeyReader, interleaved: bool, **changes) -> list[Attention | None]:
    """Reads the attention of each layer; None for a layer without heads.

    changes: Fields of every `Attention`.
    """
    heads = keys.integers("attention.head_count")
    head_width = _head_width(keys, heads)
    if keys.get("attention.head_count_kv") is None:
        kv_heads = heads
    else:
        kv_heads = keys.integers("attention.head_count_kv")
    rotary = rope(keys, head_width, interleaved)

    def of_layer(i):
        fused = keys.has(i, "attn_qkv.weight")
        made = Attention(heads[i], kv_heads[i], head_width, rotary, fused_qkv=fused)
        return dataclasses.replace(made, **changes)

    return [of_layer(i) if heads[i] and kv_heads[i] else None for i in range(keys.layers)]


def _head_width(keys, heads) -> int:
    """The width of a head; where the file does not say, the heads share the model's width."""
    width, count = keys.integer("embedding_length"), max(heads)
    shared = None if width % count else width // count
    given = keys.integer("attention.key_length", shared or 0)
    if not given:
        raise GGUFError(
            f"{keys.path}: width {width} is not a multiple of {count} heads, and there is no"
            " attention.key_length"
        )
    if (of_values := keys.integer("attention.value_length", given)) != given:
        raise GGUFError(f"keys are {given} wide and values {of_values}: not supported")
    return given


def rope(keys: KeyReader, head_width: int, interleaved: bool) -> RopeConfig:
    """Reads the rotary embedding."""
    kind = keys.text("rope.scaling.type", "linear")
    if kind not in ("none", "linear"):
        raise GGUFError(
            f"{keys.path}: rope scaling {kind!r} is not supported, only none and linear"
        )
    old = keys.optional_real("rope.scale_linear")
    scale = keys.optional_real("rope.scaling.factor") or old or 1.0
    return RopeConfig(
        keys.integer("rope.dimension_count", head_width),
        base=keys.real("rope.freq_base", 10000.0),
        interleaved=interleaved,
        scale=scale if kind == "linear" else 1.0,
        factors=keys.vector("rope_freqs.weight"),
    )


def feed_forwards(keys: KeyReader, gated: dict, mixture: dict) -> list[Gated | Mixture | None]:
    """Reads the feed-forward of each layer; gated, mixture: changes of every one."""
    experts, hidden = keys.integer("expert_count", 0, low=0), keys.integers("feed_forward_length")
    dense = keys.integer("leading_dense_block_count", 0, low=0) if experts else keys.layers
    mixed = _mixture(keys, experts, mixture) if experts else None

    def of_layer(i):
        if i >= dense:
            return mixed
        fused = not keys.has(i, "ffn_gate.weight")
        return dataclasses.replace(Gated(hidden[i], fused=fused), **gated) if hidden[i] else None

    return [of_layer(i) for i in range(keys.layers)]


def _mixture(keys, experts, changes) -> Mixture:
    made = Mixture(
        experts=experts,
        used=keys.integer("expert_used_count", high=experts),
        hidden=keys.integer("expert_feed_forward_length", keys.integer("feed_forward_length")),
        shared_hidden=keys.integer("expert_shared_feed_forward_length", 0, low=0),
    )
    return dataclasses.replace(made, **changes)


def vocabulary(keys: KeyReader) -> int:
    """Reads the rows of the embedding; the key vocab_size, where there is one, must agree."""
    embedding = keys.tensors.get("token_embd.weight")
    rows = embedding.shape[0] if embedding is not None and len(embedding.shape) == 2 else None
    given = keys.get("vocab_size")
    if rows is None and given is None:
        raise GGUFError(f"{keys.path}: the file has no matrix token_embd.weight")
    claimed = keys.integer("vocab_size", rows)
    if rows is not None and claimed != rows:
        raise GGUFError(
            f"{keys.path}: {keys.architecture}.vocab_size is {claimed}, token_embd.weight has"
            f" {rows} rows"
        )
    return claimed


def _llama_like(**options) -> Callable[[KeyReader], DecoderConfig]:
    """Returns the function of a family that `llama_like` alone reads."""
    return functools.partial(llama_like, **options)


_QKV_BIASES = frozenset(("attn_q", "attn_k", "attn_v"))
_IGNORED_WINDOW = {
    "attention.sliding_window": (
        "llama.cpp ignores it for this architecture: early Mistral files carry it"
    )
}

#: Name -> how a file of the family is read, and the keys that change nothing -> why.
FAMILIES: dict[str, tuple[Callable[[KeyReader], DecoderConfig], dict[str, str]]] = {
    "llama": (_llama_like(interleaved=True), _IGNORED_WINDOW),
    "qwen2": (_llama_like(required_biases=_QKV_BIASES), {}),
    "qwen2moe": (
        _llama_like(required_biases=_QKV_BIASES, mixture=dict(renormalize=False)),
        {},
    ),
    "qwen3": (_llama_like(attention=dict(qk_norm="head")), {}),
    "qwen3moe": (_llama_like(attention=dict(qk_norm="head")), {}),
    "chatglm": (_llama_like(interleaved=True, required_biases=frozenset(("attn_qkv",))), {}),
    "glm4": (_llama_like(interleaved=True, norms=POST_NORMS, required_biases=_QKV_BIASES), {}),
}
