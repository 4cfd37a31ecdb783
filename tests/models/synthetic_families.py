"""Cases of `synthetic` for families that are data on options of others."""

from typing import Any

import numpy as np

from tests.models.synthetic import CONTEXT, Case, Values, decay
from tests.models.synthetic_shapes import (
    EXPERT_HIDDEN,
    EXPERT_KEYS,
    HEAD,
    HEADS,
    HIDDEN,
    KEYS,
    KV_HEADS,
    LAYER_NORM,
    RMS,
    WIDTH,
    attention,
    experts,
    file,
    gated,
    head_norms,
    linear,
    norm,
)

NORMS = norm("attn_norm") | norm("ffn_norm")
BIASED_NORMS = norm("attn_norm", bias=True) | norm("ffn_norm", bias=True)
ONE_NORM = norm("attn_norm", bias=True)
PLAIN = attention() | gated()
#: All heads have keys and values of their own.
MHA = {"attention.head_count_kv": HEADS}
#: Half of a head rotates.
HALF = {"rope.dimension_count": HEAD // 2}


def case(
    name: str,
    keys: dict[str, Any],
    *layers: dict,
    architecture: str = "",
    values: dict[str, Values] | None = None,
    **options: Any,
) -> Case:
    """Makes a case. options: Of `file`."""
    keys = KEYS | {"block_count": len(layers)} | keys
    shapes = file(*layers, **options)
    return Case(name, architecture or name, keys, shapes, values=values or {})


def of_each_head():
    """Norms of queries and keys with weights for each head."""
    return {"attn_q_norm.weight": (HEADS, HEAD), "attn_k_norm.weight": (KV_HEADS, HEAD)}


def latent(queries: int | None):
    """Latent attention with one tensor for keys and values: heads of 6 + 4, values of 8."""
    made = linear("attn_kv_a_mqa", WIDTH, 12 + 4) | norm("attn_kv_a_norm", 12)
    made |= linear("attn_kv_b", 12, HEADS * (6 + 8)) | linear("attn_output", HEADS * 8, WIDTH)
    if queries is None:
        return made | linear("attn_q", WIDTH, HEADS * 10)
    made |= linear("attn_q_a", WIDTH, queries) | norm("attn_q_a_norm", queries)
    return made | linear("attn_q_b", queries, HEADS * 10)


LATENT_KEYS = {
    "attention.head_count_kv": HEADS,
    "attention.kv_lora_rank": 12,
    "attention.key_length": 10,
    "attention.value_length": 8,
    "rope.dimension_count": 4,
}
GRANITE_KEYS = {
    "attention.sliding_window": 40,
    "attention.sliding_window_pattern": [False, True, True, True, False],
    "attention.scale": 0.2,
    "embedding_scale": 3.0,
    "residual_scale": 0.4,
    "logit_scale": 1.5,
}
GELU_SEQUENTIAL = BIASED_NORMS | gated(gate=False, bias=True)
LEARNED_POSITIONS = {"position_embd.weight": (CONTEXT, WIDTH)}
FACTORS = {
    "rope_factors_short.weight": (2,),
    "rope_factors_long.weight": (2,),
}


def factors(random, shape):
    """Divisors of frequencies, from 1 on."""
    return 1 + 4 * random.random(shape)


XIELU = {
    "xielu.alpha_n": np.array([0.3, -0.4], np.float32),
    "xielu.alpha_p": np.array([0.8, -0.2], np.float32),
    "xielu.beta": np.array([0.5, 0.4], np.float32),
    "xielu.eps": np.array([-1e-6, -1e-6], np.float32),
}

#: A state space of 96 channels with 10 numbers each, as llama.cpp wants: twice the width.
MAMBA_KEYS = {
    "ssm.inner_size": 2 * WIDTH,
    "ssm.state_size": 10,
    "ssm.time_step_rank": 7,
    "ssm.conv_kernel": 4,
}
STATE_NORMS = norm("ssm_dt_norm", 7) | norm("ssm_b_norm", 10) | norm("ssm_c_norm", 10)
RATES: dict[str, Values] = {"ssm_a": decay}


def state_space():
    """The tensors of a state space."""
    made = linear("ssm_in", WIDTH, 4 * WIDTH) | linear("ssm_x", 2 * WIDTH, 7 + 2 * 10)
    made |= {"ssm_conv1d.weight": (2 * WIDTH, 4), "ssm_conv1d.bias": (2 * WIDTH,)}
    made |= linear("ssm_dt", 7, 2 * WIDTH, bias=True) | linear("ssm_out", 2 * WIDTH, WIDTH)
    return made | {"ssm_a": (2 * WIDTH, 10), "ssm_d": (2 * WIDTH,)}


FOUR_NORMS = NORMS | norm("post_attention_norm") | norm("post_ffw_norm")
GATED_ATTENTION = attention() | head_norms() | linear("attn_gate", WIDTH, HEADS * HEAD)

FAMILIES = (
    case(
        "stablelm-12b",
        LAYER_NORM | HALF,
        *[ONE_NORM | PLAIN | of_each_head()] * 2,
        architecture="stablelm",
        bias=True,
    ),
    case(
        "command-r-plus",
        LAYER_NORM | {"logit_scale": 0.8},
        *[norm("attn_norm") | PLAIN | of_each_head()] * 64,
        architecture="command-r",
        tied=True,
    ),
    case("apertus", RMS | XIELU, *[NORMS | attention() | head_norms() | gated(gate=False)] * 2),
    case(
        "mistral4",
        RMS
        | EXPERT_KEYS
        | LATENT_KEYS
        | {
            "attention.head_count_kv": 1,
            "attention.q_lora_rank": 20,
            "attention.key_length": 16,
            "attention.value_length": 12,
            "attention.key_length_mla": 10,
            "attention.value_length_mla": 8,
            "expert_shared_count": 1,
            "expert_weights_norm": True,
            "attention.temperature_scale": 0.1,
            "attention.temperature_length": 50,
        },
        *[
            {
                **{n: s for n, s in latent(20).items() if not n.startswith("attn_kv_b")},
                "attn_k_b.weight": (HEADS, 12, 6),
                "attn_v_b.weight": (HEADS, 8, 12),
                **NORMS,
                **experts(shared=EXPERT_HIDDEN),
            }
        ]
        * 2,
    ),
    case(
        "gpt2",
        LAYER_NORM | {"attention.head_count_kv": None},
        *[GELU_SEQUENTIAL | attention(kv_heads=HEADS, fused=True, bias=True, output_bias=True)] * 2,
        tied=True,
        bias=True,
        more=LEARNED_POSITIONS,
    ),
    case(
        "starcoder",
        LAYER_NORM | {"attention.head_count_kv": 1},
        *[GELU_SEQUENTIAL | attention(kv_heads=1, fused=True, bias=True, output_bias=True)] * 2,
        bias=True,
        more=LEARNED_POSITIONS,
    ),
    case(
        "gptneox",
        LAYER_NORM | MHA | HALF | {"use_parallel_residual": True},
        *[GELU_SEQUENTIAL | attention(kv_heads=HEADS, fused=True, bias=True, output_bias=True)] * 2,
        bias=True,
    ),
    case(
        "gptneox-sequential",
        LAYER_NORM | MHA | {"use_parallel_residual": False},
        *[GELU_SEQUENTIAL | attention(kv_heads=HEADS, fused=True, bias=True, output_bias=True)] * 2,
        architecture="gptneox",
        bias=True,
    ),
    case(
        "falcon",
        LAYER_NORM | {"attention.head_count_kv": 1},
        *[ONE_NORM | attention(kv_heads=1, fused=True) | gated(gate=False)] * 2,
        tied=True,
        bias=True,
    ),
    case(
        "falcon-40b",
        LAYER_NORM,
        *[ONE_NORM | norm("attn_norm_2", bias=True) | attention(fused=True) | gated(gate=False)]
        * 2,
        architecture="falcon",
        bias=True,
    ),
    case(
        "phi2",
        LAYER_NORM | MHA | HALF,
        *[
            ONE_NORM
            | attention(kv_heads=HEADS, bias=True, output_bias=True)
            | gated(gate=False, bias=True)
        ]
        * 2,
        bias=True,
        head_bias=True,
    ),
    case(
        "codeshell",
        LAYER_NORM,
        *[GELU_SEQUENTIAL | attention(bias=True, output_bias=True)] * 2,
        bias=True,
    ),
    case("orion", LAYER_NORM, *[BIASED_NORMS | PLAIN] * 2, bias=True),
    case(
        "nemotron",
        LAYER_NORM | HALF,
        *[BIASED_NORMS | attention() | gated(gate=False)] * 2,
        bias=True,
    ),
    case(
        "jais2",
        LAYER_NORM,
        *[GELU_SEQUENTIAL | attention(bias=True, output_bias=True)] * 2,
        bias=True,
    ),
    case("xverse", RMS, *[NORMS | PLAIN] * 2),
    # llama.cpp takes 32 layers for the 7B model, 40 for the 13B one, and aborts at other numbers.
    case("baichuan", RMS, *[NORMS | PLAIN] * 32),
    case("baichuan-13b", RMS, *[NORMS | PLAIN] * 40, architecture="baichuan"),
    case(
        "bloom",
        LAYER_NORM | MHA,
        *[GELU_SEQUENTIAL | attention(kv_heads=HEADS, fused=True, bias=True, output_bias=True)] * 2,
        tied=True,
        bias=True,
        more=norm("token_embd_norm", bias=True),
    ),
    case(
        "mpt",
        LAYER_NORM | MHA | {"attention.max_alibi_bias": 8.0, "attention.clamp_kqv": 0.9},
        *[NORMS | attention(kv_heads=HEADS, fused=True) | gated(gate=False)] * 2,
        tied=True,
    ),
    case(
        "mpt-positions",
        LAYER_NORM,
        *[GELU_SEQUENTIAL | attention(fused=True, bias=True, output_bias=True)] * 2,
        architecture="mpt",
        bias=True,
        more=LEARNED_POSITIONS,
    ),
    case(
        "jais",
        LAYER_NORM | MHA | {"attention.max_alibi_bias": 8.0},
        *[
            BIASED_NORMS
            | attention(kv_heads=HEADS, fused=True, bias=True, output_bias=True)
            | gated(bias=True)
        ]
        * 2,
        bias=True,
    ),
    case(
        "refact",
        RMS | {"attention.head_count_kv": 1},
        *[NORMS | attention(kv_heads=1) | gated()] * 2,
    ),
    case(
        "granite_swa",
        RMS | GRANITE_KEYS | {"attention.rope_pattern": [True, True, False, True, False]},
        *[NORMS | attention() | {"attn_sinks.weight": (HEADS,)} | gated()] * 5,
        tied=True,
    ),
    case(
        "granite_swa-experts",
        RMS
        | GRANITE_KEYS
        | {"expert_count": 8, "expert_used_count": 3, "expert_shared_feed_forward_length": 20},
        *[
            NORMS
            | attention(output_bias=True)
            | {"attn_sinks.weight": (HEADS,)}
            | linear("ffn_gate_inp", WIDTH, 8)
            | {
                "ffn_gate_up_exps.weight": (8, 2 * HIDDEN, WIDTH),
                "ffn_down_exps.weight": (8, WIDTH, HIDDEN),
            }
            | linear("ffn_up_shexp", WIDTH, 2 * 20)
            | linear("ffn_down_shexp", 20, WIDTH)
        ]
        * 5,
        architecture="granite_swa",
        tied=True,
    ),
    case(
        "phimoe",
        RMS
        | {
            "expert_count": 8,
            "expert_used_count": 3,
            "rope.scaling.original_context_length": 64,
            "rope.scaling.attn_factor": 1.2,
            "attention.sliding_window": 100,
        },
        *[BIASED_NORMS | attention(bias=True, output_bias=True) | experts(HIDDEN)] * 2,
        bias=True,
        head_bias=True,
        more=dict.fromkeys(FACTORS, (HEAD // 2,)),
        values={"rope_factors_short.weight": factors, "rope_factors_long.weight": factors},
    ),
    case(
        "dbrx",
        LAYER_NORM | {"attention.clamp_kqv": 0.9, "expert_count": 8, "expert_used_count": 3},
        *[
            norm("attn_norm") | norm("attn_output_norm") | attention(fused=True) | experts(HIDDEN),
        ]
        * 2,
    ),
    case(
        "hy_v3",
        RMS
        | EXPERT_KEYS
        | {
            "leading_dense_block_count": 1,
            "expert_gating_func": 2,
            "expert_weights_norm": True,
            "expert_weights_scale": 1.4,
            "expert_shared_feed_forward_length": 20,
            "attention.key_length": 12,
            "attention.value_length": 12,
            "rope.dimension_count": 12,
        },
        NORMS | attention(head=12) | head_norms(12) | gated(),
        *[NORMS | attention(head=12) | head_norms(12) | experts(shared=20) | {"exp_probs_b": (8,)}]
        * 2,
        tied=True,
    ),
    case(
        "cohere2moe",
        LAYER_NORM
        | EXPERT_KEYS
        | {
            "attention.sliding_window": 40,
            "attention.sliding_window_pattern": [False, True, True, True, False],
            "leading_dense_block_count": 1,
            "expert_shared_count": 2,
            "expert_shared_feed_forward_length": 20,
            "expert_weights_norm": True,
            "expert_weights_scale": 1.4,
            "logit_scale": 0.8,
        },
        norm("attn_norm") | PLAIN,
        *[norm("attn_norm") | attention() | experts(shared=20)] * 4,
        tied=True,
    ),
    case(
        "cohere2moe-rms",
        RMS
        | EXPERT_KEYS
        | {
            "attention.sliding_window": 40,
            "leading_dense_block_count": 0,
            "logit_scale": 0.8,
            "rope.freq_base": 5e4,
        },
        *[norm("attn_norm") | attention() | experts()] * 4,
        architecture="cohere2moe",
        tied=True,
    ),
    case(
        "minicpm",
        RMS | {"embedding_scale": 3.0, "residual_scale": 0.4, "logit_scale": 1.5},
        *[NORMS | attention(bias=True, output_bias=True) | gated()] * 2,
        tied=True,
    ),
    case(
        "minicpm3",
        RMS
        | LATENT_KEYS
        | {
            "attention.q_lora_rank": 20,
            "rope.scaling.type": "longrope",
            "rope.scaling.original_context_length": 64,
            "rope.scaling.attn_factor": 1.1,
        },
        *[NORMS | latent(20) | gated()] * 2,
        tied=True,
        more=FACTORS,
        values={"rope_factors_short.weight": factors, "rope_factors_long.weight": factors},
    ),
    case("plm", RMS | LATENT_KEYS, *[NORMS | latent(None) | gated(gate=False)] * 2, tied=True),
    case(
        "openelm",
        RMS
        | {
            "attention.head_count": np.array([6, 4], np.int32),
            "attention.head_count_kv": np.array([2, 1], np.int32),
            "feed_forward_length": np.array([HIDDEN, 40], np.int32),
            "attention.key_length": 8,
            "attention.value_length": 8,
        },
        NORMS | attention(fused=True) | head_norms() | gated(),
        NORMS | attention(heads=4, kv_heads=1, fused=True) | head_norms() | gated(40),
        tied=True,
    ),
    case(
        "exaone",
        RMS,
        *[NORMS | PLAIN] * 2,
        more={"rope_freqs.weight": (4,)},
        values={"rope_freqs.weight": factors},
    ),
    case(
        "olmo",
        LAYER_NORM | {"attention.clamp_kqv": 0.9},
        *[PLAIN] * 2,
        tied=True,
        output_norm="",
    ),
    case(
        "deepseek",
        RMS
        | EXPERT_KEYS
        | {
            "leading_dense_block_count": 1,
            "expert_shared_count": 2,
            "expert_weights_scale": 1.3,
        },
        NORMS | PLAIN,
        NORMS | attention() | experts(shared=2 * EXPERT_HIDDEN),
    ),
    case(
        "qwen",
        RMS | MHA | {"feed_forward_length": 2 * HIDDEN},
        *[NORMS | attention(kv_heads=HEADS, fused=True) | {"attn_qkv.bias": (3 * WIDTH,)} | gated()]
        * 2,
    ),
    case("pangu-embedded", RMS, *[NORMS | attention(bias=True, output_bias=True) | gated()] * 2),
    case("plamo", RMS, *[norm("attn_norm") | PLAIN] * 2),
    case(
        "bitnet",
        RMS,
        *[NORMS | PLAIN | norm("attn_sub_norm") | norm("ffn_sub_norm", HIDDEN)] * 2,
        tied=True,
    ),
    case(
        "maincoder",
        RMS,
        *[NORMS | PLAIN | head_norms()] * 2,
        tied=True,
    ),
    case(
        "afmoe",
        RMS
        | EXPERT_KEYS
        | {
            "attention.sliding_window": 40,
            "leading_dense_block_count": 1,
            "expert_shared_count": 1,
            "expert_weights_norm": True,
            "expert_weights_scale": 1.4,
        },
        FOUR_NORMS | GATED_ATTENTION | gated(),
        *[FOUR_NORMS | GATED_ATTENTION | experts(shared=EXPERT_HIDDEN) | {"exp_probs_b.bias": (8,)}]
        * 3,
    ),
    case(
        "exaone-moe",
        RMS
        | EXPERT_KEYS
        | {
            "attention.sliding_window": 40,
            "leading_dense_block_count": 1,
            "expert_shared_count": 1,
            "expert_gating_func": 2,
            "expert_weights_norm": True,
            "expert_weights_scale": 1.4,
        },
        NORMS | PLAIN | head_norms(),
        *[
            NORMS
            | attention()
            | head_norms()
            | experts(shared=EXPERT_HIDDEN)
            | {"exp_probs_b.bias": (8,)}
        ]
        * 3,
    ),
    case(
        "spark2_5",
        RMS
        | {
            "attention.sliding_window": 40,
            "attention.sliding_window_pattern": [True, False, True],
            "attention.head_count": np.array([6, 4, 6], np.int32),
            "attention.key_length": 8,
            "attention.value_length": 8,
            "rope.freq_base_swa": 500.0,
            "rope.dimension_count": 8,
            "rope.dimension_count_swa": 4,
        },
        *[
            NORMS | attention(heads=heads) | linear("attn_gate", WIDTH, heads) | gated()
            for heads in (6, 4, 6)
        ],
        tied=True,
    ),
    case(
        "plamo3",
        RMS | {"attention.sliding_window": 40, "rope.freq_base": 5e4},
        *[
            norm("attn_norm")
            | norm("ffn_norm")
            | {"post_attention_norm": (WIDTH,), "post_ffw_norm": (WIDTH,)}
            | attention(fused=True)
            | head_norms()
            | linear("ffn_up", WIDTH, 2 * HIDDEN)
            | linear("ffn_down", HIDDEN, WIDTH)
        ]
        * 9,
        tied=True,
    ),
    case(
        "paddleocr",
        RMS | {"rope.dimension_sections": [1, 1, 2, 0]},
        *[NORMS | PLAIN] * 2,
    ),
    case("mamba", RMS | MAMBA_KEYS, *[norm("attn_norm") | state_space()] * 2, values=RATES),
    case(
        "falcon-mamba",
        RMS | MAMBA_KEYS | {"ssm.dt_b_c_rms": True},
        *[norm("attn_norm") | state_space()] * 2,
        architecture="mamba",
        tied=True,
        values=RATES,
    ),
    case(
        "jamba",
        RMS
        | MAMBA_KEYS
        | {
            "attention.head_count_kv": np.array([0, KV_HEADS, 0], np.int32),
            "expert_count": 8,
            "expert_used_count": 3,
        },
        NORMS | state_space() | STATE_NORMS | gated(),
        NORMS | attention() | experts(HIDDEN),
        NORMS | state_space() | STATE_NORMS | experts(HIDDEN),
        values=RATES,
    ),
    case(
        "mellum",
        RMS
        | EXPERT_KEYS
        | {
            "attention.sliding_window": 40,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 64,
        },
        *[NORMS | attention() | head_norms() | experts()] * 4,
    ),
    case(
        "deepseek2-ocr",
        RMS
        | MHA
        | EXPERT_KEYS
        | {
            "leading_dense_block_count": 1,
            "expert_shared_count": 2,
            "expert_weights_scale": 1.3,
            "rope.freq_base": 10000.0,
        },
        NORMS | attention(kv_heads=HEADS) | gated(),
        NORMS | attention(kv_heads=HEADS) | experts(shared=2 * EXPERT_HIDDEN),
    ),
    *[
        case(
            f"laguna-{name}",
            RMS
            | EXPERT_KEYS
            | {
                "attention.head_count": np.array([6, 4, 6, 4], np.int32),
                "attention.key_length": 8,
                "attention.value_length": 8,
                "attention.sliding_window": 40,
                "leading_dense_block_count": 1,
                "expert_weights_norm": True,
                "expert_weights_scale": 1.3,
                "expert_shared_feed_forward_length": 20,
                "rope.dimension_count": 4,
                "rope.dimension_count_swa": 8,
                "rope.freq_base_swa": 500.0,
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 64,
            },
            *[
                NORMS
                | attention(heads=heads)
                | head_norms()
                | linear("attn_gate", WIDTH, heads * gates)
                | (gated() if not i else experts(shared=20) | {"exp_probs_b.bias": (8,)})
                for i, heads in enumerate((6, 4, 6, 4))
            ],
            architecture="laguna",
            tied=True,
        )
        for name, gates in (("heads", 1), ("numbers", HEAD))
    ],
)
