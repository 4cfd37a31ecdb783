"""Shapes of models with state spaces, short convolutions or latent attention.

`hybrid_shapes.py` lists concrete sizes.
"""

import dataclasses

import numpy as np

Shapes = dict[str, tuple[int, ...]]


def as_weights(shapes: Shapes) -> Shapes:
    return {f"{name}.weight": shape for name, shape in shapes.items()}


@dataclasses.dataclass(frozen=True)
class Hybrid:
    """Layers of several parts, attention with `head` wide heads among them."""

    architecture: str
    width: int
    hidden: int
    vocabulary: int
    #: The parts of each layer: "state", "attention", "convolution", "feed_forward".
    parts: tuple[tuple[str, ...], ...]
    #: Heads, KV heads and head width of attention.
    attention: tuple[int, int, int]
    gated: bool = True
    tied = False
    output_norm = "output_norm"

    @property
    def layers(self) -> int:
        return len(self.parts)

    def keys(self) -> dict:
        heads, kv_heads, head = self.attention
        of_layers = [kv_heads if "attention" in parts else 0 for parts in self.parts]
        same = len(set(of_layers)) == 1
        return {
            "feed_forward_length": self._hidden_units(),
            "attention.head_count": heads,
            "attention.head_count_kv": of_layers[0] if same else np.array(of_layers, np.int32),
            "attention.key_length": head,
            "attention.value_length": head,
            "rope.dimension_count": head,
            "rope.freq_base": np.float32(1e6),
        }

    def _hidden_units(self):
        """The hidden units, layer by layer where some have no feed-forward."""
        each = [self.hidden if "feed_forward" in parts else 0 for parts in self.parts]
        return each[0] if len(set(each)) == 1 else np.array(each, np.int32)

    def block(self, i: int) -> Shapes:
        shapes: Shapes = {"attn_norm.weight": (self.width,)}
        for part in self.parts[i]:
            shapes |= getattr(self, f"_{part}")()
        return shapes | self._feed_forward_norm(i)

    def _feed_forward_norm(self, i: int) -> Shapes:
        several = len(self.parts[i]) > 1 and "feed_forward" in self.parts[i]
        name = "ffn_norm" if self.architecture == "falcon-h1" else "ffn_norm.weight"
        return {name: (self.width,)} if several else {}

    def _attention(self) -> Shapes:
        (heads, kv_heads, head), D = self.attention, self.width
        shapes: Shapes = dict.fromkeys(("attn_k", "attn_v"), (kv_heads * head, D))
        shapes |= {"attn_q": (heads * head, D), "attn_output": (D, heads * head)}
        if self.architecture == "lfm2":
            shapes |= dict.fromkeys(("attn_q_norm", "attn_k_norm"), (head,))
        return as_weights(shapes)

    def _feed_forward(self) -> Shapes:
        up = ("ffn_gate", "ffn_up") if self.gated else ("ffn_up",)
        shapes: Shapes = dict.fromkeys(up, (self.hidden, self.width))
        return as_weights(shapes | {"ffn_down": (self.width, self.hidden)})


@dataclasses.dataclass(frozen=True)
class StateSpace(Hybrid):
    """State spaces of Mamba 2 in some layers, or all."""

    #: Heads, head width, state width and groups.
    state: tuple[int, int, int, int] = (64, 64, 128, 1)
    taps: int = 4
    state_norm: bool = True

    def keys(self) -> dict:
        heads, head, state, groups = self.state
        keys = super().keys() | {
            "ssm.conv_kernel": self.taps,
            "ssm.inner_size": heads * head,
            "ssm.state_size": state,
            "ssm.time_step_rank": heads,
            "ssm.group_count": groups,
        }
        if self.architecture == "nemotron_h":
            keys["attention.layer_norm_epsilon"] = np.float32(1e-6)
        if self.architecture == "granitehybrid":
            factors = dict(embedding_scale=12, residual_scale=0.22, logit_scale=8)
            keys |= {name: np.float32(value) for name, value in factors.items()}
            keys["attention.scale"] = np.float32(0.015625)
        if self.attention[0] == 0:
            attention = ("attention.head_count_kv", "attention.key", "attention.value", "rope.")
            keys = {name: value for name, value in keys.items() if not name.startswith(attention)}
        return keys

    def _state(self) -> Shapes:
        (heads, head, state, groups), D = self.state, self.width
        inner, directions = heads * head, 2 * groups * state
        channels = inner + directions
        shapes = as_weights(
            {
                "ssm_in": (inner + channels + heads, D),
                "ssm_conv1d": (channels, self.taps),
                "ssm_out": (D, inner),
            }
        )
        if self.state_norm:
            grouped = (groups, inner // groups)
            shapes["ssm_norm.weight"] = grouped if groups > 1 else grouped[1:]
        shapes |= {"ssm_conv1d.bias": (channels,), "ssm_dt.bias": (heads,)}
        return shapes | {"ssm_a": (heads, 1), "ssm_d": (heads, 1)}


@dataclasses.dataclass(frozen=True)
class ShortConvolutions(Hybrid):
    """Short convolutions in most layers: LFM2."""

    taps: int = 3
    tied = True
    output_norm = "token_embd_norm"

    def keys(self) -> dict:
        return super().keys() | {"shortconv.l_cache": self.taps}

    def _convolution(self) -> Shapes:
        D = self.width
        shapes: Shapes = {"in_proj": (3 * D, D), "conv": (D, self.taps), "out_proj": (D, D)}
        return {f"shortconv.{name}": shape for name, shape in as_weights(shapes).items()}


@dataclasses.dataclass(frozen=True)
class Latent:
    """Latent attention and experts after leading dense layers: DeepSeek 2 and GLM 4.7 Flash."""

    layers: int
    width: int
    hidden: int
    vocabulary: int
    heads: int
    #: The width of the queries' latent, and of the latent of keys and values.
    ranks: tuple[int, int]
    #: Elements of a head: non-rotating part of keys, rotating part of keys, values.
    head: tuple[int, int, int]
    #: Experts, experts per token, hidden units of each.
    experts: tuple[int, int, int]
    dense: int = 1
    architecture = "deepseek2"
    tied = False
    output_norm = "output_norm"

    def keys(self) -> dict:
        (query_rank, rank), (still, rotating, value) = self.ranks, self.head
        experts, used, each = self.experts
        return {
            "feed_forward_length": self.hidden,
            "attention.head_count": self.heads,
            "attention.head_count_kv": 1,
            "attention.q_lora_rank": query_rank,
            "attention.kv_lora_rank": rank,
            "attention.key_length": rank + rotating,
            "attention.value_length": rank,
            "attention.key_length_mla": still + rotating,
            "attention.value_length_mla": value,
            "rope.dimension_count": rotating,
            "rope.freq_base": np.float32(1e6),
            "leading_dense_block_count": self.dense,
            "expert_count": experts,
            "expert_used_count": used,
            "expert_feed_forward_length": each,
            "expert_shared_count": 1,
            "expert_gating_func": 2,
            "expert_weights_norm": True,
            "expert_weights_scale": np.float32(1.8),
        }

    def block(self, i: int) -> Shapes:
        (query_rank, rank), (still, rotating, value) = self.ranks, self.head
        D, N = self.width, self.heads
        shapes: Shapes = {"attn_norm": (D,), "ffn_norm": (D,)}
        shapes |= {"attn_q_a": (query_rank, D), "attn_q_a_norm": (query_rank,)}
        shapes |= {"attn_q_b": (N * (still + rotating), query_rank)}
        shapes |= {"attn_kv_a_mqa": (rank + rotating, D), "attn_kv_a_norm": (rank,)}
        shapes |= {"attn_k_b": (N, rank, still), "attn_v_b": (N, value, rank)}
        shapes |= {"attn_output": (D, N * value)}
        if i < self.dense:
            shapes |= dict.fromkeys(("ffn_gate", "ffn_up"), (self.hidden, D))
            return as_weights(shapes | {"ffn_down": (D, self.hidden)})
        experts, _, each = self.experts
        shapes |= dict.fromkeys(("ffn_gate_exps", "ffn_up_exps"), (experts, each, D))
        shapes |= dict.fromkeys(("ffn_gate_shexp", "ffn_up_shexp"), (each, D))
        shapes |= {"ffn_down_exps": (experts, D, each), "ffn_down_shexp": (D, each)}
        shapes["ffn_gate_inp"] = (experts, D)
        return as_weights(shapes) | {"exp_probs_b.bias": (experts,)}
