"""Families with layer norms instead of RMS norms."""

from typing import Any

from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.models.families.shared import with_windows
from rocmforge_jax.models.keys import KeyReader
from rocmforge_jax.models.llama_like import llama_like
from rocmforge_jax.models.mixers import Attention
from rocmforge_jax.models.read_attention import head_width
from rocmforge_jax.models.read_feed_forward import read_routing
from rocmforge_jax.nn import GELU, RELU2

#: Options of `llama_like` for layers whose feed-forward reads the input of the attention.
PARALLEL: dict[str, Any] = dict(
    norms=dict(kind="layer", before_feed_forward="attn_norm"), layer=dict(parallel=True)
)

#: Options of `llama_like` for layers whose feed-forward follows the attention.
SEQUENTIAL: dict[str, Any] = dict(norms=dict(kind="layer"))
#: Fields of feed-forwards with GELU and without gates.
UNGATED_GELU: dict[str, Any] = dict(activation=GELU, gated=False)
#: Fields of feed-forwards with squared ReLU and without gates.
UNGATED_RELU2: dict[str, Any] = dict(activation=RELU2, gated=False)


def stablelm(keys: KeyReader) -> DecoderConfig:
    """StableLM: attention and feed-forward in parallel if the file has no norm between them."""
    residual = SEQUENTIAL if keys.has(0, "ffn_norm.weight") else PARALLEL
    return llama_like(keys, attention=_norms_of_each_head(keys), **residual)


def command_r(keys: KeyReader) -> DecoderConfig:
    """Command R and Aya 23: attention and feed-forward in parallel, a factor of the logits."""
    attention = _norms_of_each_head(keys)
    scale = keys.optional_real("logit_scale") or 1.0
    return llama_like(keys, interleaved=True, attention=attention, logit_scale=scale, **PARALLEL)


def cohere2(keys: KeyReader) -> DecoderConfig:
    """Command R7B and Command A: Command R with windows; full attention has no rotation."""
    return llama_like(
        keys,
        interleaved=True,
        mixer=with_windows(keys.windows(4), full_rotates=False),
        logit_scale=keys.optional_real("logit_scale") or 1.0,
        **PARALLEL,
    )


def cohere2moe(keys: KeyReader) -> DecoderConfig:
    """Command with experts: Cohere 2, whose leading dense layers rotate with full attention too.

    The result of a layer with a shared expert is the mean of the routed and the shared part.
    """
    windows = keys.windows(4, full_first=True)
    dense = keys.integer("leading_dense_block_count", low=0)
    routing = read_routing(keys, "sigmoid")
    shared = keys.integer("expert_shared_count", 0, low=0) > 0
    if shared:
        routing["scale"] /= 2

    rotating, still = with_windows(windows), with_windows(windows, full_rotates=False)

    def mixer(i: int, attention: Attention | None) -> Attention | None:
        return (rotating if i < dense else still)(i, attention)

    rms = keys.get("attention.layer_norm_rms_epsilon")
    norms = PARALLEL["norms"] | dict(kind="rms" if rms else "layer")
    return llama_like(
        keys,
        interleaved=True,
        experts_required=True,
        norms=norms,
        layer=PARALLEL["layer"],
        mixer=mixer,
        mixture=dict(shared_scale=0.5) if shared else None,
        routing=routing,
        logit_scale=keys.optional_real("logit_scale") or 1.0,
    )


def _norms_of_each_head(keys: KeyReader) -> dict[str, Any]:
    """Returns fields of `Attention`; in the largest models, QK norm has weights for each head."""
    return dict(qk_norm="each") if keys.has(0, "attn_q_norm.weight") else {}


def gpt2(keys: KeyReader) -> DecoderConfig:
    """GPT-2 and StarCoder 1: learned positions instead of a rotary embedding."""
    return llama_like(
        keys,
        attention=dict(rope=None),
        gated=UNGATED_GELU,
        positions=keys.trained_context,
        **SEQUENTIAL,
    )


def bloom(keys: KeyReader) -> DecoderConfig:
    """BLOOM: ALiBi instead of a rotary embedding, and a norm of the embeddings."""
    return llama_like(
        keys,
        attention=dict(rope=None, alibi=8.0),
        gated=UNGATED_GELU,
        embedding_norm="token_embd_norm",
        **SEQUENTIAL,
    )


def mpt(keys: KeyReader) -> DecoderConfig:
    """MPT: ALiBi or learned positions; queries, keys and values may be clipped."""
    alibi = keys.optional_real("attention.max_alibi_bias")
    clamp = keys.optional_real("attention.clamp_kqv")
    learned = "position_embd.weight" in keys.tensors
    return llama_like(
        keys,
        attention=dict(rope=None, alibi=alibi, clamp=clamp),
        gated=UNGATED_GELU,
        positions=keys.trained_context if learned else 0,
        **SEQUENTIAL,
    )


def jais(keys: KeyReader) -> DecoderConfig:
    """Jais: ALiBi; scores are divided by the width of a head, not by its root."""
    alibi = keys.optional_real("attention.max_alibi_bias")
    attention = dict(rope=None, alibi=alibi, scale=1 / head_width(keys))
    return llama_like(keys, attention=attention, **SEQUENTIAL)


def dbrx(keys: KeyReader) -> DecoderConfig:
    """DBRX: a mixture of experts; queries, keys and values are clipped."""
    return llama_like(
        keys,
        experts_required=True,
        norms=dict(kind="layer", before_feed_forward="attn_output_norm"),
        attention=dict(clamp=keys.real("attention.clamp_kqv")),
    )


def gptneox(keys: KeyReader) -> DecoderConfig:
    """GPT-NeoX and Pythia: attention and feed-forward in parallel, each with its own norm."""
    parallel = keys.flag("use_parallel_residual", True)
    return llama_like(keys, layer=dict(parallel=parallel), gated=UNGATED_GELU, **SEQUENTIAL)


def falcon(keys: KeyReader) -> DecoderConfig:
    """Falcon: attention and feed-forward in parallel, with separate norms in larger models."""
    before = "attn_norm_2" if keys.has(0, "attn_norm_2.weight") else "attn_norm"
    norms = PARALLEL["norms"] | dict(before_mixer=before)
    return llama_like(keys, gated=UNGATED_GELU, norms=norms, layer=PARALLEL["layer"])


def olmo(keys: KeyReader) -> DecoderConfig:
    """OLMo 1: norms without weights; queries, keys and values may be clipped."""
    clamp = keys.optional_real("attention.clamp_kqv")
    norms = dict(kind="unit_layer")
    return llama_like(keys, interleaved=True, norms=norms, attention=dict(clamp=clamp))
