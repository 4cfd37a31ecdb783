"""Reads what nearly all families of decoders share: `llama_like`, and its parts."""

import dataclasses
import warnings
from collections.abc import Callable, Collection, Sequence
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
    mixers: Sequence[Mixer | None] | None = None,
    feed_forward_layers: Collection[int] | None = None,
    epsilon: float | None = None,
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
        mixers: The mixers of all layers, for families without such attention.
        feed_forward_layers: Numbers of the layers with a feed-forward. None: all, but for those
            whose units the file counts as 0.
        epsilon: Of all norms, default what the file says.
        **decoder: Changes of the `DecoderConfig`.
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


def _biases(keys: KeyReader, i: int) -> frozenset[str]:
    """Returns the names of a layer's modules that have a bias.

    A fused attn_qkv may come with the biases of its parts: loading joins them.
    """
    names, parts = keys.named(i, "bias"), {"attn_q", "attn_k", "attn_v"}
    if not keys.has(i, "attn_qkv.weight") or "attn_qkv" in names or not parts <= names:
        return names
    return (names - parts) | {"attn_qkv"}


def _norms(norms: Norms, mixer: Mixer | None, feed_forward: Gated | Mixture | None) -> Norms:
    """Leaves out the norms of a part that a layer lacks."""
    if mixer is None:
        norms = dataclasses.replace(norms, before_mixer=None, after_mixer=None)
    if feed_forward is None:
        norms = dataclasses.replace(norms, before_feed_forward=None, after_feed_forward=None)
    return norms


def attentions(keys: KeyReader, interleaved: bool, **changes) -> list[Attention | None]:
    """Reads the attention of each layer; None for a layer without heads.

    changes: Fields of every `Attention`.
    """
    heads = keys.integers("attention.head_count")
    width = changes.get("head_width") or head_width(keys)
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
    for name in ("value_length", "key_length_swa", "value_length_swa"):
        if (other := keys.integer(f"attention.{name}", given)) != given:
            raise GGUFError(
                f"{keys.path}: {keys.architecture}.attention.{name}: keys are {given} wide and"
                f" {_WIDTHS[name]} {other}: not supported"
            )
    return given


#: Widths of parts of a head, which must be that of the keys.
_WIDTHS = {
    "value_length": "values",
    "key_length_swa": "those of layers with a window",
    "value_length_swa": "values of layers with a window",
}


def rope(
    keys: KeyReader,
    width: int,
    interleaved: bool,
    *,
    log_multiplier: float | None = None,
    mscale: float = 1.0,
) -> RopeConfig:
    """Reads the rotary embedding with its context extension, as llama.cpp does.

    A factor without a type means linear scaling, a factor of 0 none.

    Args:
        keys: Of the file.
        width: Rotated elements where the file does not say.
        interleaved: As for `llama_like`.
        log_multiplier: As for `RopeConfig.extended`, default what the file says.
        mscale: As for `RopeConfig.extended`.
    """
    key = "rope.scaling.original_context_length"
    original = keys.integer(key, 0, low=0) or keys.trained_context
    old = keys.optional_real("rope.scale_linear") or 0.0
    factor = keys.optional_real("rope.scaling.factor", old)
    if log_multiplier is None:
        log_multiplier = keys.optional_real("rope.scaling.yarn_log_multiplier") or 0.0
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
        log_multiplier=log_multiplier,
        mscale=mscale,
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
            None: these layers differ in base and width alone, where the file says so.
    """
    width = keys.integer("rope.dimension_count_swa", full.width)
    if base is None:
        base = keys.real("rope.freq_base_swa", full.base)
        return dataclasses.replace(full, base=base, width=width)
    base = keys.real("rope.freq_base_swa", base)
    return RopeConfig(width, base=base, interleaved=full.interleaved)


def feed_forwards(
    keys: KeyReader,
    gated: dict,
    mixture: dict,
    routing: dict,
    layers: Collection[int] | None = None,
) -> list[Gated | Mixture | None]:
    """Reads the feed-forward of each layer.

    Args:
        keys: Of the file.
        gated: Changes of each `Gated`.
        mixture: Changes of each `Mixture`.
        routing: Changes of the `Routing` of each mixture.
        layers: See `feed_forward_layers` of `llama_like`.
    """
    layers = range(keys.layers) if layers is None else layers
    if not layers:
        return [None] * keys.layers
    experts = keys.integer("expert_count", 0, low=0)
    if experts == 1 and not keys.has(keys.layers - 1, "ffn_gate_inp.weight"):
        experts = 0  # one expert without a router is a dense feed-forward
    # Experts may have a size of their own, and then a file need not have this one.
    default, low = (0, 0) if experts else (None, 1)
    hidden = keys.integers("feed_forward_length", default, low)
    dense, step, used, groups = keys.layers, 1, (0,) * keys.layers, {}
    if experts:
        dense = keys.integer("leading_dense_block_count", 0, low=0)
        step = keys.integer("interleave_moe_layer_step", 1)
        used = keys.integers("expert_used_count", high=experts)
        groups = _groups(keys)

    def of_layer(i):
        if i not in layers:
            return None
        if i >= dense and (i + 1) % step == 0:
            chosen = dataclasses.replace(Routing(used[i], "softmax", True, **groups), **routing)
            mixed = _mixture(keys, i, experts, chosen, hidden[i])
            return dataclasses.replace(mixed, **mixture)
        if not hidden[i]:
            return None
        # A family without gates says so by `gated=False`, and then nothing is fused either.
        fused = not keys.has(i, "ffn_gate.weight")
        return dataclasses.replace(Gated(hidden[i], fused=fused), **gated)

    return [of_layer(i) for i in range(keys.layers)]


def _mixture(keys, i: int, experts: int, routing: Routing, dense_hidden: int) -> Mixture:
    """Returns the mixture of a layer. Sizes without a key, and options, are what tensors show."""
    hidden = keys.integers("expert_feed_forward_length", 0, low=0)[i]
    hidden = hidden or keys.inputs(i, "ffn_down_exps.weight") or dense_hidden
    shared = keys.integer("expert_shared_feed_forward_length", 0, low=0)
    shared = shared or keys.inputs(i, "ffn_down_shexp.weight")
    count = keys.integer("expert_shared_count", 0, low=0)
    latent = keys.integer("moe_latent_size", 0, low=0)
    return Mixture(
        experts=experts,
        routing=routing,
        hidden=hidden,
        shared_hidden=shared or count * hidden,
        latent=(latent or keys.inputs(i, "ffn_latent_up.weight")) or None,
        fused=keys.has(i, "ffn_gate_up_exps.weight"),
        selection_bias=keys.has(i, "exp_probs_b.bias"),
        shared_gate=keys.has(i, "ffn_gate_inp_shexp.weight"),
    )


def _groups(keys: KeyReader) -> dict[str, int]:
    """Reads the groups of experts, as llama.cpp does for every architecture."""
    groups = keys.integer("expert_group_count", 0, low=0) or 1
    used = keys.integer("expert_group_used_count", 0, low=0) or 1
    return dict(groups=groups, groups_used=used if groups > 1 else 1)


#: The values of `expert_gating_func`.
_SCORINGS = (None, "softmax", "sigmoid", "softmax_of_chosen", "sqrt_softplus")


def read_routing(keys: KeyReader, scoring: str = "softmax") -> dict[str, Any]:
    """Reads how experts are chosen, for families whose files say so: changes of a `Routing`.

    scoring: Where the file does not say.
    """
    return dict(
        scoring=read_scoring(keys, scoring),
        renormalize=keys.flag("expert_weights_norm", False),
        scale=keys.optional_real("expert_weights_scale") or 1.0,
    )


def read_scoring(keys: KeyReader, default: str) -> str:
    """Reads what turns the logits of a router into scores: see `Routing`."""
    number = keys.integer("expert_gating_func", 0, low=0, high=len(_SCORINGS) - 1)
    return _SCORINGS[number] or default


def vocabulary(keys: KeyReader) -> int:
    """Reads the rows of the embedding; a key vocab_size that says otherwise is warned about."""
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
