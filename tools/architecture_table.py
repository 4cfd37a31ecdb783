"""Makes the table of docs/architectures.md: which options each architecture uses.

`python -m tools.architecture_table docs/architectures.md` updates it. Each row describes the
configuration that the family's function makes from sample keys, so the table matches the code.
"""

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from rocmforge_jax.models import (
    ARCHITECTURES,
    Attention,
    DecoderConfig,
    GatedAndMixture,
    LatentAttention,
    Mixture,
)
from rocmforge_jax.models.keys import KeyReader
from tools import marked_table

START = "<!-- table: made by tools/architecture_table.py -->"
LAYERS = 12
#: Sample keys of every architecture.
KEYS = {
    "block_count": LAYERS,
    "context_length": 8192,
    "embedding_length": 256,
    "feed_forward_length": 512,
    "attention.head_count": 8,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "attention.layer_norm_epsilon": 1e-6,
    "attention.sliding_window": 1024,
}
EXPERTS = {"expert_count": 8, "expert_used_count": 2, "expert_feed_forward_length": 64}
SOFTPLUS = "softplus "
QK_NORMS = {
    "each": "layer norms of each head of q and k",
    "head": "q and k norm over the head",
    "unit": "q and k norm over the head without weights",
    "width": "q and k norm over the width",
}
LFM2 = {
    "attention.head_count_kv": np.array([0, 0, 2] * (LAYERS // 3)),
    "shortconv.l_cache": 3,
    "attention.sliding_window": 0,
}
GRANITE = {
    "attention.scale": 0.0078125,
    "embedding_scale": 12.0,
    "residual_scale": 0.22,
    "logit_scale": 8.0,
}
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 32.0}
SECTIONS = {"rope.dimension_sections": np.array([8, 4, 4, 0])}
DELTA_RULE = {
    "ssm.conv_kernel": 4,
    "ssm.group_count": 4,
    "ssm.time_step_rank": 8,
    "ssm.state_size": 32,
    "ssm.inner_size": 256,
    "attention.sliding_window": 0,
}
STATE_SPACE = {
    "ssm.conv_kernel": 4,
    "ssm.group_count": 2,
    "ssm.time_step_rank": 8,
    "ssm.state_size": 32,
    "ssm.inner_size": 512,
}
MAMBA = {
    "ssm.conv_kernel": 4,
    "ssm.time_step_rank": 16,
    "ssm.state_size": 16,
    "ssm.inner_size": 512,
}
#: One part per layer: a state space, a feed-forward, attention, a feed-forward.
NEMOTRON_H = STATE_SPACE | {
    "attention.head_count_kv": np.array([0, 0, 2, 0] * (LAYERS // 4)),
    "feed_forward_length": np.array([0, 64, 0, 64] * (LAYERS // 4)),
}
#: Keys without the architecture's prefix.
XIELU = {f"xielu.{name}": 0.5 for name in ("alpha_n", "alpha_p", "beta", "eps")}
LATENTS = {
    "attention.q_lora_rank": 192,
    "attention.kv_lora_rank": 64,
    "attention.key_length": 48,
    "attention.value_length": 32,
    "rope.dimension_count": 16,
}
DEEPSEEK2 = EXPERTS | {
    "leading_dense_block_count": 1,
    "expert_shared_count": 1,
    "expert_gating_func": 2,
    "expert_weights_norm": True,
    "attention.q_lora_rank": 192,
    "attention.kv_lora_rank": 64,
    "attention.key_length_mla": 48,
    "attention.value_length_mla": 32,
    "rope.dimension_count": 16,
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 40.0,
    "rope.scaling.yarn_log_multiplier": 0.1,
}
#: Additional sample keys by architecture.
MORE = {
    "qwen3next": EXPERTS | DELTA_RULE,
    "qwen35": DELTA_RULE,
    "qwen35moe": EXPERTS | DELTA_RULE,
    "bailingmoe2": EXPERTS | {"expert_shared_count": 1, "expert_gating_func": 2},
    "cohere2": {"logit_scale": 0.0625},
    "nomic-bert-moe": EXPERTS | {"moe_every_n_layers": 2},
    "cohere2moe": EXPERTS
    | {"leading_dense_block_count": 1, "expert_shared_count": 1, "logit_scale": 0.0625},
    "command-r": {"logit_scale": 0.0625},
    "dbrx": EXPERTS | {"attention.clamp_kqv": 8.0},
    "hy_v3": EXPERTS | {"leading_dense_block_count": 1, "expert_weights_norm": True},
    "jais": {"attention.max_alibi_bias": 8.0},
    "mpt": {"attention.max_alibi_bias": 8.0},
    "deci": {"attention.head_count_kv": np.array([2, 2, 0] * (LAYERS // 3))},
    "glm4moe": EXPERTS | {"expert_weights_norm": True, "leading_dense_block_count": 1},
    "granitemoe": EXPERTS | GRANITE,
    "granite_swa": GRANITE,
    "llama4": EXPERTS | {"interleave_moe_layer_step": 2},
    "dots1": EXPERTS,
    "minimax-m2": EXPERTS,
    "olmoe": EXPERTS,
    "mistral3": YARN | {"attention.temperature_scale": 0.1},
    "olmo2": YARN,
    "qwen2vl": SECTIONS,
    "qwen3vl": SECTIONS,
    "qwen3vlmoe": EXPERTS | SECTIONS,
    "gpt-oss": EXPERTS | YARN,
    "lfm2": LFM2,
    "lfm2moe": EXPERTS | LFM2 | {"leading_dense_block_count": 2},
    "gemma3": {"rope.freq_base": 1e6},
    "gemma3n": {
        "rope.freq_base": 1e6,
        "attention.sliding_window_pattern": np.array([True, True, False] * (LAYERS // 3)),
        "attention.shared_kv_layers": 3,
        "embedding_length_per_layer_input": 32,
    },
    "gemma4": {
        "rope.freq_base": 1e6,
        "rope.freq_base_swa": 1e4,
        "attention.sliding_window_pattern": np.array([True, True, False] * (LAYERS // 3)),
        "attention.key_length_swa": 32,
        "attention.key_length": 64,
        "attention.value_length": 64,
        "attention.shared_kv_layers": 3,
        "embedding_length_per_layer_input": 32,
    },
    "deepseek2": DEEPSEEK2,
    "mistral4": DEEPSEEK2,
    "minicpm3": LATENTS,
    "plm": LATENTS,
    "afmoe": EXPERTS,
    "deepseek2-ocr": EXPERTS,
    "laguna": EXPERTS,
    "mellum": EXPERTS | YARN,
    "exaone-moe": EXPERTS | {"expert_gating_func": 2},
    "deepseek": EXPERTS,
    "olmo": {"attention.clamp_kqv": 8.0},
    "paddleocr": SECTIONS,
    "granite": GRANITE,
    "granitehybrid": EXPERTS
    | GRANITE
    | STATE_SPACE
    | {
        "attention.head_count_kv": np.array([0, 0, 2] * (LAYERS // 3)),
        "rope.scaling.finetuned": False,
    },
    "mamba": MAMBA,
    "jamba": MAMBA | {"attention.head_count_kv": np.array([0, 0, 2] * (LAYERS // 3))},
    "mamba2": STATE_SPACE,
    "nemotron_h": NEMOTRON_H,
    "nemotron_h_moe": EXPERTS | NEMOTRON_H | {"expert_weights_norm": True},
    "falcon-h1": STATE_SPACE,
}


def config_of(name: str) -> DecoderConfig:
    """Returns the configuration that an architecture makes from the sample keys."""
    more = EXPERTS if name.endswith("moe") else {}
    keys = KEYS | more | MORE.get(name, {})
    embedding = SimpleNamespace(shape=(512, keys["embedding_length"]))
    tensors = {"token_embd.weight": embedding} | {f"blk.{i}.x": None for i in range(LAYERS)}
    for name_of_layer in ("ffn_gate", "attn_v"):
        tensors |= {f"blk.{i}.{name_of_layer}.weight": None for i in range(LAYERS)}
    metadata = {f"{name}.{key}": value for key, value in keys.items()} | XIELU
    file = SimpleNamespace(architecture=name, metadata=metadata, tensors=tensors, path="sample")
    return ARCHITECTURES[name].read(KeyReader(file))


def table() -> str:
    """Returns the table in Markdown, with one row per architecture."""
    head = [
        "architecture",
        "mixers",
        "attention",
        "rotary embedding",
        "norms",
        "feed-forward",
        "scales",
    ]
    rows = [_row(name, config_of(name)) for name in sorted(ARCHITECTURES)]
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows])


def renewed(page: str) -> str:
    """Returns the page with the current table: see `marked_table.renewed`."""
    return marked_table.renewed(page, START, table())


def _row(name: str, config: DecoderConfig) -> str:
    mixers = [layer.mixer for layer in config.layers if layer.mixer is not None]
    parts = [part for mixer in mixers for part in getattr(mixer, "mixers", (mixer,))]
    attentions = [part for part in parts if isinstance(part, Attention)]
    rotating = [part for part in parts if isinstance(part, Attention | LatentAttention)]
    cells = [
        f"`{name}`",
        _kinds(map(_kind, mixers)) + _beside(config),
        _joined(_attention(one) for one in attentions),
        _joined(_rope(one.rope) for one in rotating) + _learned_positions(config),
        _joined(_norms(layer) for layer in config.layers),
        _joined(_feed_forward(layer) for layer in config.layers if layer.feed_forward),
        _scales(config),
    ]
    return f"| {' | '.join(cells)} |"


def _beside(config: DecoderConfig) -> str:
    """Describes LAuReL and the residual streams, if the decoder has them."""
    laurel = ", LAuReL" if config.layers[0].laurel is not None else ""
    return laurel + (f", {config.streams} residual streams" if config.streams > 1 else "")


def _kind(mixer) -> str:
    return " + ".join(type(part).__name__ for part in getattr(mixer, "mixers", (mixer,)))


def _kinds(names) -> str:
    """Joins the different kinds; if there are several, counts the sample's layers of each."""
    names = list(names)
    kinds = dict.fromkeys(names)
    if len(kinds) == 1:
        return names[0]
    return ", ".join(f"{kind} ({names.count(kind)} of {len(names)})" for kind in kinds)


def _joined(texts) -> str:
    """Joins the different texts; if there are several, counts the sample's layers of each."""
    texts = list(texts) or [""]
    different = list(dict.fromkeys(texts))
    if len(different) == 1:
        return different[0]
    return "; ".join(
        f"{text or 'none'} ({texts.count(text)} of {len(texts)})" for text in different
    )


def _attention(one) -> str:
    parts = {
        "window": one.window is not None and one.causal,
        "window to both sides": one.window is not None and not one.causal,
        "chunks": one.chunk is not None,
        "ALiBi": one.alibi is not None,
        "soft cap": one.soft_cap is not None,
        "sinks": one.sinks,
        "own scale": one.scale is not None,
        QK_NORMS.get(one.qk_norm, ""): one.qk_norm is not None,
        "rotates first": one.rotates_first,
        "v norm": one.v_norm,
        f"{SOFTPLUS * (one.gate_function == 'softplus')}gate by {one.gate}": one.gate is not None,
        "temperature": one.temperature is not None,
        "clamp": one.clamp is not None,
        "norm before the output": one.sub_norm,
        "not causal": not one.causal,
        "values from keys": one.v_from_k,
        "keys and values of another layer": one.source is not None,
    }
    return ", ".join(part for part, there in parts.items() if there)


def _rope(rope) -> str:
    if rope is None:
        return "none"
    scaling = ", YaRN" if rope.yarn else ", scaled" if rope.scale != 1 else ""
    return f"{'interleaved' if rope.interleaved else 'NeoX'}, base {rope.base:g}{scaling}"


def _learned_positions(config: DecoderConfig) -> str:
    return ", learned positions" if config.positions else ""


def _norms(layer) -> str:
    norms = layer.norms
    kind = {
        "rms": "RMS",
        "layer": "LayerNorm",
        "unit_layer": "LayerNorm without weights",
    }[norms.kind]
    places = dataclasses.asdict(norms)
    there = [place for place in places if place.startswith(("before", "after")) and places[place]]
    before, after = (any(place.startswith(word) for place in there) for word in ("before", "after"))
    where = "before and after" if before and after else "before" if before else "after"
    where = "of sums" if norms.after_mixer_sum else where
    return f"{kind} {where}{', parallel' if layer.parallel else ''}"


def _feed_forward(layer) -> str:
    own = ", then the layer's own input" if layer.per_layer_input is not None else ""
    return _named(layer.feed_forward) + own


def _named(feed) -> str:
    if isinstance(feed, GatedAndMixture):
        return f"{_named(feed.gated)} + {_named(feed.mixture)}"
    if not isinstance(feed, Mixture):
        cutoff = " with a cutoff" if feed.cutoff is not None else ""
        cutoff += ", normed" if feed.sub_norm else ""
        return f"{feed.activation}{'' if feed.gated else ' without gate'}{cutoff}"
    routing = feed.routing
    parts = [f"{feed.activation} experts, {routing.scoring.replace('_', ' ')}"]
    parts += ["renormalised"] if routing.renormalize else []
    parts += [] if feed.gated else ["without gates"]
    parts += ["selection bias"] if feed.selection_bias else []
    parts += [f"{routing.groups} groups"] if routing.groups > 1 else []
    return ", ".join(parts)


def _scales(config) -> str:
    scales = {
        "embedding": config.embedding_scale,
        "residual": config.layers[0].residual_scale,
        "logits": config.logit_scale,
    }
    parts = [name for name, scale in scales.items() if scale != 1]
    return ", ".join(parts + (["logit cap"] if config.logit_cap is not None else []))


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(renewed(page.read_text()))
