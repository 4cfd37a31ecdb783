"""Encoders, in which tokens see one another in both directions. They compute embeddings."""

import dataclasses
import math
from typing import Any

from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.models.embedding_head import Classifier, EmbeddingHead
from rocmforge_jax.models.families.gemma import gemma
from rocmforge_jax.models.families.shared import POST_NORMS, with_windows
from rocmforge_jax.models.feed_forward import Gated
from rocmforge_jax.models.keys import KeyReader
from rocmforge_jax.models.llama_like import llama_like
from rocmforge_jax.models.read_attention import head_width
from rocmforge_jax.models.read_rope import rope, window_rope
from rocmforge_jax.nn import GELU, SILU, ActivationFunction

#: Norms of the residual sums instead of norms before mixer and feed-forward (post-norm).
_NORMS_OF_SUMS: dict[str, Any] = dict(
    kind="layer",
    before_mixer=None,
    after_mixer_sum="attn_output_norm",
    before_feed_forward=None,
    after_feed_forward_sum="layer_output_norm",
)
#: As in llama.cpp, `attention.causal` is ignored.
_BOTH_WAYS: dict[str, Any] = dict(causal=False)
#: A feed-forward with GELU and without gates.
_PLAIN_GELU: dict[str, Any] = dict(activation=GELU, gated=False)
#: Values of `hidden_activation` that mean SiLU. All others mean GELU, as in llama.cpp.
_SILU_NAMES = ("silu", "swish", "swiglu")


def bert_like(
    keys: KeyReader, *, attention: dict[str, Any] | None = None, **changes: Any
) -> DecoderConfig:
    """BERT's encoder: normalised sums of token and type embeddings; post-norm; no head.

    Args:
        keys: The keys of the file.
        attention: See `llama_like`.
        **changes: See `llama_like`.
    """
    return llama_like(
        keys,
        norms=_NORMS_OF_SUMS,
        has_head=False,
        output_norm=None,
        embedding_norm="token_embd_norm",
        token_types=_rows(keys, "token_types.weight"),
        attention=_BOTH_WAYS | (attention or {}),
        **changes,
    )


def bert(keys: KeyReader) -> DecoderConfig:
    """BERT, RoBERTa and XLM-RoBERTa: learned positions, GELU without gates."""
    return bert_like(
        keys,
        positions=keys.trained_context,
        attention=dict(rope=None),
        gated=_PLAIN_GELU,
    )


def nomic_bert(keys: KeyReader) -> DecoderConfig:
    """Nomic Embed 1 and 1.5: BERT with rotary embeddings and SiLU gates."""
    return bert_like(keys)


def jina_bert_v3(keys: KeyReader, **changes: Any) -> DecoderConfig:
    """Jina Embeddings 3: BERT with rotary embeddings.

    Args:
        keys: The keys of the file.
        **changes: See `llama_like`.
    """
    return bert_like(keys, gated=_PLAIN_GELU, **changes)


def jina_bert_v2(keys: KeyReader) -> DecoderConfig:
    """Jina Embeddings 2: BERT with ALiBi instead of positions, and GELU with or without gates."""
    normed = dict(qk_norm="width") if keys.has(0, "attn_q_norm.weight") else {}
    units = _rows(keys, "blk.0.ffn_up.weight")
    fused = not keys.has(0, "ffn_gate.weight") and units == 2 * keys.integer("feed_forward_length")
    gated = fused or keys.has(0, "ffn_gate.weight")
    return bert_like(
        keys,
        attention=dict(rope=None, alibi=8.0) | normed,
        gated=dict(activation=GELU) if gated else _PLAIN_GELU,
    )


def nomic_bert_moe(keys: KeyReader) -> DecoderConfig:
    """Nomic Embed 2: Jina's BERT, with experts in the second layer of each period."""
    period = keys.integer("moe_every_n_layers", 0, low=0)
    config = jina_bert_v3(
        keys,
        mixture=_PLAIN_GELU,
        routing=dict(renormalize=False),
    )
    dense = Gated(keys.integer("feed_forward_length"), **_PLAIN_GELU)
    layers = [
        layer if period > 0 and i % period == 1 else dataclasses.replace(layer, feed_forward=dense)
        for i, layer in enumerate(config.layers)
    ]
    return dataclasses.replace(config, layers=tuple(layers))


def modern_bert(keys: KeyReader) -> DecoderConfig:
    """ModernBERT: pre-norm, rotary embeddings, windows in two of three layers."""
    full = rope(keys, head_width(keys), interleaved=False)
    windows = [_both_sides(size) for size in keys.windows(3, optional=True, full_first=True)]
    config = llama_like(
        keys,
        norms=dict(kind="layer"),
        attention=_BOTH_WAYS,
        gated=dict(activation=_activation(keys)),
        mixer=with_windows(windows, window_rope(keys, full, 10000.0)),
        has_head=False,
        embedding_norm="token_embd_norm",
        embedding_head=EmbeddingHead(classifier=Classifier(pooling="mean", activation="gelu")),
    )
    if keys.has(0, "attn_norm.weight"):
        return config
    # Without attn_norm: the embeddings are already normalised.
    first = config.layers[0]
    first = dataclasses.replace(first, norms=dataclasses.replace(first.norms, before_mixer=None))
    return dataclasses.replace(config, layers=(first, *config.layers[1:]))


def gemma_embedding(keys: KeyReader) -> DecoderConfig:
    """EmbeddingGemma: Gemma 3 without a causal mask, with windows that extend to both sides."""
    full = rope(keys, head_width(keys), interleaved=False)
    windows = [_both_sides(size) for size in keys.windows(6)]
    return gemma(
        keys,
        norms=POST_NORMS,
        attention=dict(qk_norm="head") | _BOTH_WAYS,
        mixer=with_windows(windows, window_rope(keys, full, 10000.0)),
    )


def neo_bert(keys: KeyReader) -> DecoderConfig:
    """NeoBERT: Llama's layers with fused projections, without a head."""
    return llama_like(
        keys,
        interleaved=True,
        attention=_BOTH_WAYS,
        has_head=False,
        output_norm="enc_output_norm",
    )


def eurobert(keys: KeyReader) -> DecoderConfig:
    """EuroBERT: Llama's layers, without a head."""
    return llama_like(keys, attention=_BOTH_WAYS, has_head=False)


def _both_sides(window: int | None) -> int | None:
    """Returns the odd window size of half a window on each side of a token; None for None."""
    return None if window is None else 2 * (window // 2) + 1


def _activation(keys: KeyReader) -> ActivationFunction:
    return SILU if keys.text("hidden_activation", "gelu") in _SILU_NAMES else GELU


def _rows(keys: KeyReader, name: str) -> int:
    """Returns the number of rows of an embedding, or 0 if the file does not have it."""
    tensor = keys.tensors.get(name)
    return 0 if tensor is None else math.prod(tensor.shape[:-1])
