"""Families with layer norms in the place of RMS norms."""

from typing import Any

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.models.families.shared import with_windows
from rocmforge_jax.models.keys import KeyReader
from rocmforge_jax.models.llama_like import llama_like

#: The changes of layers whose feed-forward reads what the attention reads.
PARALLEL: dict[str, Any] = dict(
    norms=dict(kind="layer", before_feed_forward="attn_norm"), layer=dict(parallel=True)
)


def stablelm(keys: KeyReader) -> DecoderConfig:
    """StableLM: attention and feed-forward side by side where a file has no norm between them."""
    _refuse_norms_of_each_head(keys)
    sequential: dict[str, Any] = dict(norms=dict(kind="layer"))
    return llama_like(keys, **(sequential if keys.has(0, "ffn_norm.weight") else PARALLEL))


def command_r(keys: KeyReader) -> DecoderConfig:
    """Command R and Aya 23: attention and feed-forward side by side, a factor of the logits."""
    _refuse_norms_of_each_head(keys)
    scale = keys.optional_real("logit_scale") or 1.0
    return llama_like(keys, interleaved=True, logit_scale=scale, **PARALLEL)


def cohere2(keys: KeyReader) -> DecoderConfig:
    """Command R7B and Command A: Command R with windows; full layers do not rotate."""
    return llama_like(
        keys,
        interleaved=True,
        mixer=with_windows(keys.windows(4), full_rotates=False),
        logit_scale=keys.optional_real("logit_scale") or 1.0,
        **PARALLEL,
    )


def _refuse_norms_of_each_head(keys: KeyReader) -> None:
    """Raises GGUFError for a file whose heads each have a norm with weights of its own."""
    if keys.has(0, "attn_q_norm.weight"):
        raise GGUFError(
            f"{keys.path}: blk.0.attn_q_norm.weight: norms with other weights for each head, as in"
            f" the large models of {keys.architecture}, are not supported"
        )
