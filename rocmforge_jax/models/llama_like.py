"""Reads what nearly all families of decoders share: `llama_like`, and its parts."""

import dataclasses
from collections.abc import Callable
from typing import Any

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.models.config import DecoderConfig, LayerConfig
from rocmforge_jax.models.feed_forward import Gated, Mixture
from rocmforge_jax.models.keys import KeyReader
from rocmforge_jax.models.make import Norms
from rocmforge_jax.models.mixers import Attention
from rocmforge_jax.models.parts import Mixer
from rocmforge_jax.nn import RopeConfig, Routing, longrope_factors


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
        routing: Changes of the `Routing` of every mixture.
        layer: Changes of every `LayerConfig`.
        experts_required: Whether a file without experts is refused.
        mixer: (number of a layer, its attention) -> its mixer, for what differs between layers. The
            attention is None where the file counts no KV heads.
        **decoder: Changes of the `DecoderConfig`.
    """
    norm_kind = (norms or {}).get("kind", "rms")
    rms = "rms_" if norm_kind == "rms" else ""
    epsilon = keys.real(f"attention.layer_norm_{rms}epsilon")
    of_file = attentions(keys, interleaved, **(attention or {}))
    mixers = of_file if mixer is None else [mixer(i, one) for i, one in enumerate(of_file)]
    if experts_required:
        keys.integer("expert_count")
    feeds = feed_forwards(keys, gated or {}, mixture or {}, routing or {})
    layers = tuple(
        LayerConfig(
            mixer=mixers[i],
            feed_forward=feeds[i],
            norms=Norms(epsilon, **(norms or {})),
            biases=keys.named(i, "bias"),
            output_scales=keys.named(i, "scale"),
            **(layer or {}),
        )
        for i in range(keys.layers)
    )
    config = DecoderConfig(
        layers=layers,
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


def attentions(keys: KeyReader, interleaved: bool, **changes) -> list[Attention | None]:
    """Reads the attention of each layer; None for a layer without heads.

    changes: Fields of every `Attention`.
    """
    heads = keys.integers("attention.head_count")
    width = head_width(keys)
    if keys.get("attention.head_count_kv") is None:
        kv_heads = heads
    else:
        kv_heads = keys.integers("attention.head_count_kv")
    rotary = rope(keys, width, interleaved)

    def of_layer(i):
        fused = keys.has(i, "attn_qkv.weight")
        made = Attention(heads[i], kv_heads[i], width, rotary, fused_qkv=fused)
        return dataclasses.replace(made, **changes)

    return [of_layer(i) if heads[i] and kv_heads[i] else None for i in range(keys.layers)]


def head_width(keys: KeyReader) -> int:
    """The width of a head; where the file does not say, the heads share the model's width."""
    width, count = keys.integer("embedding_length"), max(keys.integers("attention.head_count"))
    if not count:
        raise GGUFError(
            f"{keys.path}: {keys.architecture}.attention.head_count is 0 in all"
            f" {keys.layers} layers"
        )
    shared = None if width % count else width // count
    given = keys.integer("attention.key_length", shared or 0)
    if not given:
        raise GGUFError(
            f"{keys.path}: width {width} is not a multiple of {count} heads, and there is no"
            " attention.key_length"
        )
    if (of_values := keys.integer("attention.value_length", given)) != given:
        raise GGUFError(
            f"{keys.path}: {keys.architecture}.attention.value_length: keys are {given} wide and"
            f" values {of_values}: not supported"
        )
    return given


def rope(keys: KeyReader, width: int, interleaved: bool) -> RopeConfig:
    """Reads the rotary embedding with its context extension, as llama.cpp does.

    A factor without a type means linear scaling, a factor of 0 none.
    """
    original = keys.integer("rope.scaling.original_context_length", keys.trained_context)
    factor = keys.optional_real("rope.scaling.factor") or keys.optional_real("rope.scale_linear")
    plain = RopeConfig(
        keys.integer("rope.dimension_count", width),
        base=keys.real("rope.freq_base", 10000.0),
        interleaved=interleaved,
        factors=_rope_factors(keys, original),
    )
    return plain.extended(
        keys.text("rope.scaling.type", "linear"),
        factor or 1.0,
        original_context=original,
        attn_factor=keys.real("rope.scaling.attn_factor", 1.0),
        log_multiplier=keys.optional_real("rope.scaling.yarn_log_multiplier") or 0.0,
        beta_fast=keys.real("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=keys.real("rope.scaling.yarn_beta_slow", 1.0),
    )


def _rope_factors(keys, original: int) -> tuple[float, ...] | None:
    """Reads the divisors of the frequencies: of Llama 3, or those of LongRoPE for the context."""
    short, long = (keys.vector(f"rope_factors_{name}.weight") for name in ("short", "long"))
    of_context = longrope_factors(short, long, context=keys.context, original_context=original)
    return keys.vector("rope_freqs.weight") or of_context


def window_rope(keys: KeyReader, full: RopeConfig, base: float | None = None) -> RopeConfig:
    """Reads the rotary embedding of layers with a window.

    Args:
        keys: Of the file.
        full: That of the other layers.
        base: The base where the file does not say, for layers that no context extension changes.
            None: these layers differ in the base alone, where the file says so.
    """
    if base is None:
        return dataclasses.replace(full, base=keys.real("rope.freq_base_swa", full.base))
    base = keys.real("rope.freq_base_swa", base)
    return RopeConfig(full.width, base=base, interleaved=full.interleaved)


def feed_forwards(
    keys: KeyReader, gated: dict, mixture: dict, routing: dict
) -> list[Gated | Mixture | None]:
    """Reads the feed-forward of each layer. The others are changes of each one."""
    hidden = keys.integers("feed_forward_length")
    experts = keys.integer("expert_count", 0, low=0)
    dense, mixed = keys.layers, None
    if experts:
        dense = keys.integer("leading_dense_block_count", 0, low=0)
        used = keys.integer("expert_used_count", high=experts)
        mixed = _mixture(keys, experts, Routing(used, "softmax", True), routing)

    def of_layer(i):
        if mixed is not None and i >= dense:
            return dataclasses.replace(_with_tensors(keys, i, mixed), **mixture)
        if not hidden[i]:
            return None
        # A family without gates says so by `gated=False`, and then nothing is fused either.
        fused = not keys.has(i, "ffn_gate.weight")
        return dataclasses.replace(Gated(hidden[i], fused=fused), **gated)

    return [of_layer(i) for i in range(keys.layers)]


def _mixture(keys, experts: int, routing: Routing, changes: dict) -> Mixture:
    hidden = keys.integer("expert_feed_forward_length", keys.integer("feed_forward_length"))
    shared = keys.integer("expert_shared_count", 0, low=0) * hidden
    return Mixture(
        experts=experts,
        routing=dataclasses.replace(routing, **changes),
        hidden=hidden,
        shared_hidden=keys.integer("expert_shared_feed_forward_length", shared, low=0),
    )


def _with_tensors(keys, i: int, mixture: Mixture) -> Mixture:
    """Returns a mixture with the options that the tensors of a layer show."""
    return dataclasses.replace(
        mixture,
        fused=keys.has(i, "ffn_gate_up_exps.weight"),
        selection_bias=keys.has(i, "exp_probs_b.bias"),
        shared_gate=keys.has(i, "ffn_gate_inp_shexp.weight"),
    )


#: The values of `expert_gating_func`.
_SCORINGS = (None, "softmax", "sigmoid", "softmax_of_chosen", "sqrt_softplus")


def read_routing(keys: KeyReader, scoring: str = "softmax") -> dict[str, Any]:
    """Reads how experts are chosen, for families whose files say so: changes of a `Routing`.

    scoring: Where the file does not say.
    """
    number = keys.integer("expert_gating_func", 0, low=0, high=len(_SCORINGS) - 1)
    return dict(
        scoring=_SCORINGS[number] or scoring,
        renormalize=keys.flag("expert_weights_norm", False),
        scale=keys.optional_real("expert_weights_scale") or 1.0,
        groups=keys.integer("expert_group_count", 0, low=0) or 1,
        groups_used=keys.integer("expert_group_used_count", 0, low=0) or 1,
    )


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
