"""The cases of `synthetic`: families and blocks that no reference file shows."""

import math

from tests.models.synthetic import VOCABULARY, Case, decay, of_size
from tests.models.synthetic_families import FAMILIES
from tests.models.synthetic_shapes import (
    EXPERT_HIDDEN,
    EXPERT_KEYS,
    HEAD,
    HEADS,
    KEYS,
    RMS,
    WIDTH,
    attention,
    experts,
    file,
    gated,
    head_norms,
    linear,
    nextn,
    norm,
)

#: Qwen 3.5: two key heads and four value heads of 8.
DELTA_KEYS = {
    "ssm.conv_kernel": 4,
    "ssm.state_size": 8,
    "ssm.group_count": 2,
    "ssm.time_step_rank": 4,
    "ssm.inner_size": 32,
    "full_attention_interval": 2,
    "rope.dimension_sections": [1, 1, 0, 0],
    "rope.dimension_count": 4,
    "attention.key_length": HEAD,
    "attention.value_length": HEAD,
}
DELTA = {
    **linear("attn_qkv", WIDTH, 2 * 2 * 8 + 32),
    **linear("attn_gate", WIDTH, 32),
    "ssm_conv1d.weight": (64, 4),
    "ssm_dt.bias": (4,),
    "ssm_a": (4,),
    **linear("ssm_beta", WIDTH, 4),
    **linear("ssm_alpha", WIDTH, 4),
    **norm("ssm_norm", 8),
    **linear("ssm_out", 32, WIDTH),
}
QWEN_NORMS = norm("attn_norm") | norm("post_attention_norm")
QWEN_ATTENTION = attention(query=2) | head_norms()
SHARED = experts(shared=20) | {"ffn_gate_inp_shexp.weight": (WIDTH,)}
#: DeepSeek: latents of 12 numbers, heads of 10 with 4 that rotate, values of 8.
LATENT_KEYS = {
    "attention.head_count_kv": 1,
    "attention.q_lora_rank": 20,
    "attention.kv_lora_rank": 12,
    "attention.key_length": 16,
    "attention.value_length": 12,
    "attention.key_length_mla": 10,
    "attention.value_length_mla": 8,
    "rope.dimension_count": 4,
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 64,
    "rope.scaling.yarn_log_multiplier": 0.0707,
    "leading_dense_block_count": 1,
    "expert_shared_count": 1,
    "expert_gating_func": 2,
    "expert_weights_norm": True,
    "expert_weights_scale": 1.5,
}
LATENT = {
    **linear("attn_q_a", WIDTH, 20),
    **norm("attn_q_a_norm", 20),
    **linear("attn_q_b", 20, HEADS * 10),
    **linear("attn_kv_a_mqa", WIDTH, 12 + 4),
    **norm("attn_kv_a_norm", 12),
    "attn_k_b.weight": (HEADS, 12, 6),
    "attn_v_b.weight": (HEADS, 8, 12),
    **linear("attn_output", HEADS * 8, WIDTH),
}
NORMS = norm("attn_norm") | norm("ffn_norm")
BIASED_EXPERTS = experts(shared=EXPERT_HIDDEN) | {"exp_probs_b.bias": (8,)}

NEXTN = (
    Case(
        "qwen35-nextn",
        "qwen35",
        KEYS | RMS | DELTA_KEYS | {"block_count": 3, "nextn_predict_layers": 1},
        file(
            QWEN_NORMS | DELTA | gated(),
            QWEN_NORMS | QWEN_ATTENTION | gated(),
            QWEN_NORMS | QWEN_ATTENTION | gated() | nextn(own=True),
        ),
        what="nextn",
        values={"ssm_a": decay},
    ),
    Case(
        "qwen35moe-nextn",
        "qwen35moe",
        KEYS
        | RMS
        | DELTA_KEYS
        | EXPERT_KEYS
        | {"block_count": 3, "nextn_predict_layers": 1, "expert_shared_feed_forward_length": 20},
        file(
            QWEN_NORMS | DELTA | SHARED,
            QWEN_NORMS | QWEN_ATTENTION | SHARED,
            QWEN_NORMS | QWEN_ATTENTION | SHARED | nextn(),
        ),
        what="nextn",
        values={"ssm_a": decay},
    ),
    Case(
        "qwen3next-nextn",
        "qwen3next",
        KEYS
        | RMS
        | {key: value for key, value in DELTA_KEYS.items() if key != "rope.dimension_sections"}
        | EXPERT_KEYS
        | {"block_count": 3, "nextn_predict_layers": 1, "expert_shared_feed_forward_length": 20},
        file(
            QWEN_NORMS
            | {n: s for n, s in DELTA.items() if n not in ("ssm_beta.weight", "ssm_alpha.weight")}
            | linear("ssm_ba", WIDTH, 8)
            | SHARED,
            QWEN_NORMS | QWEN_ATTENTION | SHARED,
            QWEN_NORMS | QWEN_ATTENTION | SHARED | nextn(own=True),
        ),
        what="nextn",
        values={"ssm_a": decay},
    ),
    Case(
        "glm4moe-nextn",
        "glm4moe",
        KEYS
        | RMS
        | EXPERT_KEYS
        | {
            "block_count": 3,
            "nextn_predict_layers": 1,
            "leading_dense_block_count": 1,
            "expert_shared_count": 1,
            "expert_gating_func": 2,
            "expert_weights_norm": True,
            "rope.dimension_count": 4,
        },
        file(
            QWEN_NORMS | attention(bias=True) | gated(),
            QWEN_NORMS | attention(bias=True) | BIASED_EXPERTS,
            QWEN_NORMS | attention(bias=True) | BIASED_EXPERTS | nextn(own=True),
        ),
        what="nextn",
    ),
    Case(
        "deepseek2-nextn",
        "deepseek2",
        KEYS | RMS | EXPERT_KEYS | LATENT_KEYS | {"block_count": 3, "nextn_predict_layers": 1},
        file(
            NORMS | LATENT | gated(),
            NORMS | LATENT | BIASED_EXPERTS,
            NORMS | LATENT | BIASED_EXPERTS | nextn(own=True),
        ),
        what="nextn",
    ),
)
#: Keys and values of each head were one tensor, with the widths of today's `_mla` keys.
LEGACY_KEYS = LATENT_KEYS | {
    "attention.head_count_kv": HEADS,
    "attention.key_length": 10,
    "attention.value_length": 8,
}
del LEGACY_KEYS["attention.key_length_mla"], LEGACY_KEYS["attention.value_length_mla"]
LEGACY = {name: shape for name, shape in LATENT.items() if name[:8] not in ("attn_k_b", "attn_v_b")}
LEGACY |= linear("attn_kv_b", 12, HEADS * (6 + 8))
LATENTS = (
    Case(
        "deepseek2-legacy",
        "deepseek2",
        KEYS | RMS | EXPERT_KEYS | LEGACY_KEYS | {"block_count": 2},
        file(NORMS | LEGACY | gated(), NORMS | LEGACY | BIASED_EXPERTS),
    ),
)
#: Gemma 3n. llama.cpp knows the sizes of the published models alone: four residual streams, 64
#: numbers of LAuReL, inputs of 256, and keys and values in the first 20 layers.
GEMMA3N = Case(
    "gemma3n",
    "gemma3n",
    KEYS
    | RMS
    | {
        "block_count": 25,
        "attention.sliding_window": 60,
        "attention.sliding_window_pattern": [True, True, True, True, False] * 5,
        "attention.key_length": 12,
        "attention.value_length": 12,
        "rope.freq_base": 1e6,
        "embedding_length_per_layer_input": 256,
        "attention.shared_kv_layers": 5,
        "altup.num_inputs": 4,
        "altup.active_idx": 0,
        "activation_sparsity_scale": [1.6448533535003662] * 10 + [-math.inf] * 15,
    },
    file(
        *[
            {
                **norm("attn_norm"),
                **attention(head=12),
                **head_norms(12),
                **norm("post_attention_norm"),
                **norm("ffn_norm"),
                **gated(),
                **norm("post_ffw_norm"),
                **linear("inp_gate", WIDTH, 256),
                **linear("proj", 256, WIDTH),
                **norm("post_norm"),
                **linear("altup_correct_coef", 4, 4),
                **linear("altup_predict_coef", 4, 16),
                **linear("altup_router", WIDTH, 4),
                **norm("altup_router_norm"),
                **norm("altup_correct_scale"),
                **linear("laurel_l", WIDTH, 64),
                **linear("laurel_r", 64, WIDTH),
                **norm("laurel_post_norm"),
            }
        ]
        * 25,
        tied=True,
    )
    | {
        "per_layer_token_embd.weight": (VOCABULARY, 25 * 256),
        "altup_proj.weight": (3, WIDTH, WIDTH),
        "altup_unembd_proj.weight": (3, WIDTH, WIDTH),
        **linear("per_layer_model_proj", WIDTH, 25 * 256),
        **norm("per_layer_proj_norm", 256),
    },
    values={
        "attn_q_norm.weight": of_size(0.5),
        "attn_k_norm.weight": of_size(0.5),
        "post_attention_norm.weight": of_size(0.3),
        "post_ffw_norm.weight": of_size(0.3),
        "post_norm.weight": of_size(0.3),
    },
)
CASES = (*NEXTN, *LATENTS, GEMMA3N, *FAMILIES)
