"""Families of models: functions that make the configuration of a decoder from a file's keys.

`llama_like` reads the settings that nearly all families share. A family changes a few of them.
"""

import functools
from collections.abc import Callable

from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.models.embedding_head import Classifier, EmbeddingHead
from rocmforge_jax.models.families.deepseek import deepseek2, minicpm3, plm
from rocmforge_jax.models.families.delta_net import qwen3next, qwen35
from rocmforge_jax.models.families.dense import (
    apertus,
    baichuan,
    deci,
    exaone4,
    granite,
    granite_swa,
    minicpm,
    mistral3,
    olmo2,
    plamo3,
    qwen,
    spark2_5,
)
from rocmforge_jax.models.families.encoders import (
    bert,
    eurobert,
    gemma_embedding,
    jina_bert_v2,
    jina_bert_v3,
    modern_bert,
    neo_bert,
    nomic_bert,
    nomic_bert_moe,
)
from rocmforge_jax.models.families.experts import (
    afmoe,
    bailingmoe,
    bailingmoe2,
    deepseek,
    deepseek2_ocr,
    dots1,
    exaone_moe,
    gpt_oss,
    hunyuan_moe,
    hy_v3,
    laguna,
    llama4,
    mellum,
    minimax_m2,
)
from rocmforge_jax.models.families.gemma import gemma, gemma2, gemma3, gemma4
from rocmforge_jax.models.families.gemma3n import gemma3n
from rocmforge_jax.models.families.hybrid import lfm2, lfm2moe
from rocmforge_jax.models.families.layer_norms import (
    PARALLEL,
    SEQUENTIAL,
    UNGATED_GELU,
    UNGATED_RELU2,
    bloom,
    cohere2,
    cohere2moe,
    command_r,
    dbrx,
    falcon,
    gpt2,
    gptneox,
    jais,
    mpt,
    olmo,
    stablelm,
)
from rocmforge_jax.models.families.mamba import jamba, mamba
from rocmforge_jax.models.families.mamba2 import (
    falcon_h1,
    granitehybrid,
    mamba2,
    nemotron_h,
)
from rocmforge_jax.models.families.shared import (
    POST_ATTENTION_NORM,
    POST_NORMS,
    no_rope_every,
    with_windows,
)
from rocmforge_jax.models.families.vision import glm4, glm4moe, hunyuan, qwen2vl, qwen3vl
from rocmforge_jax.models.keys import KeyReader
from rocmforge_jax.models.llama_like import llama_like

__all__ = ["FAMILIES", "POST_NORMS", "WITH_NEXTN", "with_windows"]


def _llama_like(**options) -> Callable[[KeyReader], DecoderConfig]:
    """Returns the function of a family that only needs `llama_like` with some options."""
    return functools.partial(llama_like, **options)


_IGNORED_WINDOW = {
    "attention.sliding_window": (
        "llama.cpp ignores it for this architecture: early Mistral files carry it"
    )
}
_NO_WINDOW_IN_PHI3 = {
    "attention.sliding_window": (
        "llama.cpp ignores it for this architecture: converters wrote windows that are not used"
    )
}
_ONE_BASE = {"rope.freq_base_swa": "all layers rotate with rope.freq_base, as in llama.cpp"}
_EXAONE4 = _ONE_BASE | {
    key: "windows are those of the 32B model alone, which has 64 layers, as in llama.cpp"
    for key in ("attention.sliding_window", "attention.sliding_window_pattern")
}
_DEEPSEEK = {
    "attention.key_length": "the width of a latent and of the rotated part of its key",
    "attention.value_length": "the rank of the latents",
    "attention.head_count_kv": "all heads read one latent",
}
_LATENTS = {"attention.head_count_kv": "all heads read one latent"}
_STATE_SPACES_ALONE = {
    "attention.head_count": "no layer has attention",
    "attention.head_count_kv": "no layer has attention",
    "feed_forward_length": "no layer has a feed-forward",
}
_DEEPSTACK = {"n_deepstack_layers": "where images are added; text adds nothing"}
_ONE_EXPERT = {"expert_used_count": "one expert without a router is a dense feed-forward"}
_PARALLEL = {"use_parallel_residual": "a norm before the feed-forward shows it"}
_ERNIE = {"rope.dimension_sections": "a text has one position for all sections"}

#: Qwen3-Reranker: the probabilities of "yes" and "no".
_QWEN3_RERANKER = EmbeddingHead(classifier=Classifier(softmax=True))

#: Families whose blocks for multi-token prediction are supported.
WITH_NEXTN = frozenset(("bailingmoe2", "deepseek2", "glm4moe", "qwen35", "qwen35moe", "qwen3next"))
#: Name -> the function that reads a file of the family, and {key without effect: reason}.
FAMILIES: dict[str, tuple[Callable[[KeyReader], DecoderConfig], dict[str, str]]] = {
    "llama": (_llama_like(interleaved=True), _IGNORED_WINDOW),
    "qwen2": (llama_like, {}),
    "qwen2moe": (_llama_like(experts_required=True, routing=dict(renormalize=False)), {}),
    "qwen2vl": (qwen2vl, {}),
    "qwen3": (_llama_like(attention=dict(qk_norm="head"), embedding_head=_QWEN3_RERANKER), {}),
    "qwen3moe": (_llama_like(attention=dict(qk_norm="head"), experts_required=True), {}),
    "qwen3vl": (qwen3vl, _DEEPSTACK),
    "qwen3vlmoe": (functools.partial(qwen3vl, experts_required=True), _DEEPSTACK),
    "arcee": (_llama_like(interleaved=True, gated=UNGATED_RELU2), {}),
    "bailingmoe": (bailingmoe, {}),
    "bert": (bert, {}),
    "eurobert": (eurobert, {}),
    "gemma-embedding": (gemma_embedding, {}),
    "jina-bert-v2": (jina_bert_v2, {}),
    "jina-bert-v3": (jina_bert_v3, {}),
    "llama-embed": (_llama_like(interleaved=True), _IGNORED_WINDOW),
    "modern-bert": (modern_bert, {}),
    "neo-bert": (neo_bert, {}),
    "nomic-bert": (nomic_bert, {}),
    "nomic-bert-moe": (nomic_bert_moe, {}),
    "bailingmoe2": (bailingmoe2, {}),
    "qwen3next": (functools.partial(qwen3next, experts_required=True), {}),
    "qwen35": (qwen35, {}),
    "qwen35moe": (functools.partial(qwen35, experts_required=True), {}),
    "chatglm": (_llama_like(interleaved=True), {}),
    "cohere2": (cohere2, _ONE_BASE),
    "command-r": (command_r, {}),
    "deci": (deci, {}),
    "deepseek2": (deepseek2, _DEEPSEEK),
    "dots1": (dots1, {}),
    "ernie4_5": (_llama_like(interleaved=True), _ERNIE),
    "ernie4_5-moe": (_llama_like(interleaved=True, experts_required=True), _ERNIE),
    "exaone4": (exaone4, _EXAONE4),
    "falcon-h1": (falcon_h1, {}),
    "gemma": (gemma, {}),
    "gemma2": (gemma2, {}),
    "gemma3": (gemma3, {}),
    "gemma3n": (gemma3n, {}),
    "gemma4": (gemma4, {}),
    "glm4": (glm4, {}),
    "glm4moe": (glm4moe, {}),
    "gpt-oss": (gpt_oss, {}),
    "granite": (granite, {"deepstack_mapping": "where images are added; text adds nothing"}),
    "granite_swa": (
        granite_swa,
        {"deepstack_mapping": "where images are added; text adds nothing"},
    ),
    "granitehybrid": (
        granitehybrid,
        {"expert_shared_feed_forward_length": "a file without experts has no shared one"},
    ),
    "granitemoe": (functools.partial(granite, rope_can_be_off=False), {}),
    "hunyuan-dense": (hunyuan, _ONE_EXPERT),
    "hunyuan-moe": (hunyuan_moe, {}),
    "hunyuan_vl": (hunyuan, {}),
    "internlm2": (_llama_like(interleaved=True), {}),
    "lfm2": (lfm2, {}),
    "lfm2moe": (lfm2moe, {}),
    "llama4": (llama4, {}),
    "jamba": (jamba, {}),
    "mamba": (mamba, _STATE_SPACES_ALONE),
    "mamba2": (mamba2, _STATE_SPACES_ALONE),
    "minimax-m2": (minimax_m2, {}),
    "mistral3": (mistral3, {}),
    "nemotron_h": (nemotron_h, {}),
    "nemotron_h_moe": (nemotron_h, {}),
    "olmo2": (olmo2, _ONE_BASE),
    "olmoe": (
        _llama_like(
            experts_required=True,
            attention=dict(qk_norm="width"),
            routing=dict(renormalize=False),
        ),
        {},
    ),
    "phi3": (llama_like, _NO_WINDOW_IN_PHI3),
    "seed_oss": (_llama_like(norms=POST_ATTENTION_NORM), {}),
    "smollm3": (_llama_like(interleaved=True, mixer=no_rope_every(4)), {}),
    "stablelm": (stablelm, _PARALLEL),
    "starcoder2": (_llama_like(gated=UNGATED_GELU, **SEQUENTIAL), {}),
    "afmoe": (afmoe, {}),
    "apertus": (apertus, {}),
    "exaone-moe": (exaone_moe, {}),
    "maincoder": (
        _llama_like(interleaved=True, attention=dict(qk_norm="head", rotates_first=True)),
        {},
    ),
    "paddleocr": (qwen2vl, {}),
    "plamo3": (plamo3, {}),
    "spark2_5": (spark2_5, {}),
    "baichuan": (baichuan, {}),
    "bitnet": (_llama_like(attention=dict(sub_norm=True), gated=dict(sub_norm=True)), {}),
    "codeshell": (_llama_like(gated=UNGATED_GELU, **SEQUENTIAL), {}),
    "deepseek": (deepseek, {}),
    "deepseek2-ocr": (deepseek2_ocr, {}),
    "exaone": (llama_like, {}),
    "laguna": (laguna, {}),
    "mellum": (mellum, _ONE_BASE),
    "falcon": (falcon, {}),
    "bloom": (bloom, {}),
    "cohere2moe": (cohere2moe, _ONE_BASE),
    "dbrx": (dbrx, {}),
    "hy_v3": (hy_v3, {}),
    "jais": (jais, {}),
    "mpt": (mpt, {}),
    "phimoe": (_llama_like(experts_required=True), _NO_WINDOW_IN_PHI3),
    "refact": (_llama_like(attention=dict(rope=None, alibi=8.0)), {}),
    "gpt2": (gpt2, {}),
    "gptneox": (gptneox, {}),
    "jais2": (_llama_like(gated=UNGATED_RELU2, **SEQUENTIAL), {}),
    "minicpm": (minicpm, {}),
    "minicpm3": (minicpm3, _LATENTS),
    "mistral4": (deepseek2, _DEEPSEEK),
    "nemotron": (_llama_like(gated=UNGATED_RELU2, **SEQUENTIAL), {}),
    "olmo": (olmo, {}),
    "openelm": (_llama_like(attention=dict(qk_norm="head")), {}),
    "orion": (_llama_like(**SEQUENTIAL), {}),
    "pangu-embedded": (llama_like, {}),
    "phi2": (_llama_like(gated=UNGATED_GELU, **PARALLEL), {}),
    "plamo": (
        _llama_like(norms=dict(before_feed_forward="attn_norm"), layer=PARALLEL["layer"]),
        {},
    ),
    "plm": (plm, _LATENTS),
    "qwen": (qwen, {}),
    "starcoder": (gpt2, {}),
    "xverse": (_llama_like(interleaved=True), {}),
}
