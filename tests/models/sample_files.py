"""Files of any architecture that exist in memory alone: keys, and the names of tensors."""

from types import SimpleNamespace

import numpy as np

#: Keys that every architecture gets: width 48, 6 heads of 8, 2 KV heads.
KEYS = {
    "block_count": 2,
    "context_length": 64,
    "embedding_length": 48,
    "feed_forward_length": 40,
    "attention.head_count": 6,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
}
#: Keys of a mixture.
EXPERTS = {"expert_count": 8, "expert_used_count": 3, "expert_feed_forward_length": 24}
#: Keys of a state space: 4 heads of 6, 2 groups.
STATE_SPACE = {
    "ssm.time_step_rank": 4,
    "ssm.inner_size": 24,
    "ssm.state_size": 10,
    "ssm.group_count": 2,
    "ssm.conv_kernel": 4,
}
#: Keys that an architecture requires besides.
MORE = {
    "cohere2": {"attention.sliding_window": 16, "attention.layer_norm_epsilon": 1e-5},
    "command-r": {"attention.layer_norm_epsilon": 1e-5},
    "stablelm": {"attention.layer_norm_epsilon": 1e-5},
    "starcoder2": {"attention.layer_norm_epsilon": 1e-5},
    "bailingmoe2": {"expert_shared_count": 1, "expert_feed_forward_length": 24},
    "falcon-h1": STATE_SPACE,
    "gemma2": {"attention.sliding_window": 16},
    "gpt-oss": {"attention.sliding_window": 16},
    "granite": {"logit_scale": 8.0},
    "granitehybrid": STATE_SPACE,
    "granitemoe": {"logit_scale": 8.0},
    "lfm2": {"shortconv.l_cache": 3},
    "lfm2moe": {"shortconv.l_cache": 3},
    "llama4": {"expert_feed_forward_length": 24},
    "mamba2": STATE_SPACE,
    "nemotron_h": STATE_SPACE | {"attention.layer_norm_epsilon": 1e-5},
    "nemotron_h_moe": STATE_SPACE | {"attention.layer_norm_epsilon": 1e-5},
    "qwen2vl": {"rope.dimension_sections": np.array([2, 1, 1, 0], np.int32)},
    "qwen3vl": {"rope.dimension_sections": np.array([2, 1, 1, 0], np.int32)},
    "qwen3vlmoe": {"rope.dimension_sections": np.array([2, 1, 1, 0], np.int32)},
}
VOCABULARY = 70


def sample(name: str, present=(), **keys) -> SimpleNamespace:
    """Makes a file.

    Args:
        name: Of the architecture.
        present: Names of tensors that every layer has, besides ffn_gate; or names of tensors of the
            file and their values, float32.
        **keys: Changes of the keys, without the prefix; None leaves one out.
    """
    given = {key: value for key, value in (KEYS | MORE.get(name, {}) | keys).items()}
    given = {key: value for key, value in given.items() if value is not None}
    layers = range(given["block_count"])
    embedding = SimpleNamespace(shape=(VOCABULARY, given["embedding_length"]))
    tensors: dict = {"token_embd.weight": embedding, "output.weight": None}
    if isinstance(present, dict):
        tensors |= {tensor: _vector(values) for tensor, values in present.items()}
        present = ()
    tensors |= {f"blk.{i}.{part}": None for i in layers for part in ("ffn_gate.weight", *present)}
    metadata = {f"{name}.{key}": value for key, value in given.items()}
    return SimpleNamespace(architecture=name, metadata=metadata, tensors=tensors, path="sample")


def _vector(values) -> SimpleNamespace:
    kind = SimpleNamespace(name="F32")
    return SimpleNamespace(shape=values.shape, format=kind, data=values.view(np.uint8))
