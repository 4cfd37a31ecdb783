"""Shapes of models with different kinds of layers: the keys and tensor shapes of their files.

`synthetic.py` writes files with these shapes, and `made.py` makes decoders.
"""

import dataclasses

import numpy as np
from state_shapes import Latent, Shapes, ShortConvolutions, StateSpace, as_weights


@dataclasses.dataclass(frozen=True)
class Gemma4:
    """Gemma 4, dense: windows in five layers of six, wider heads in the others."""

    layers: int
    width: int
    hidden: int
    heads: int
    #: KV heads and head width of the layers with a window, and of the layers with full attention.
    windowed: tuple[int, int]
    full: tuple[int, int]
    window: int
    vocabulary: int
    architecture = "gemma4"
    tied = True
    output_norm = "output_norm"

    def is_full(self, i: int) -> bool:
        return i % 6 == 5

    def keys(self) -> dict:
        kv_heads = [(self.full if self.is_full(i) else self.windowed)[0] for i in self._numbers]
        return {
            "feed_forward_length": self.hidden,
            "attention.head_count": self.heads,
            "attention.head_count_kv": np.array(kv_heads, np.int32),
            "attention.key_length": self.full[1],
            "attention.value_length": self.full[1],
            "attention.key_length_swa": self.windowed[1],
            "attention.value_length_swa": self.windowed[1],
            "attention.sliding_window": self.window,
            "attention.sliding_window_pattern": np.array(
                [not self.is_full(i) for i in self._numbers]
            ),
            "attention.shared_kv_layers": 0,
            "embedding_length_per_layer_input": 0,
            "rope.dimension_count": self.full[1],
            "rope.dimension_count_swa": self.windowed[1],
            "rope.freq_base": np.float32(1e6),
            "rope.freq_base_swa": np.float32(1e4),
            "final_logit_softcapping": np.float32(30),
        }

    @property
    def _numbers(self):
        return range(self.layers)

    def rope_factors(self) -> np.ndarray:
        """Makes the divisors of full layers' frequencies: a quarter of the pairs rotate."""
        pairs = self.full[1] // 2
        return np.where(np.arange(pairs) < pairs // 4, 1, 1e30).astype(np.float32)

    def block(self, i: int) -> Shapes:
        kv_heads, head = self.full if self.is_full(i) else self.windowed
        D, N = self.width, self.heads
        shapes: Shapes = dict.fromkeys(
            ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"), (D,)
        )
        shapes |= {"attn_q": (N * head, D), "attn_k": (kv_heads * head, D)}
        if not self.is_full(i):  # with full attention, attn_k also computes the values
            shapes["attn_v"] = (kv_heads * head, D)
        shapes |= {"attn_output": (D, N * head), "attn_q_norm": (head,), "attn_k_norm": (head,)}
        shapes |= {"ffn_gate": (self.hidden, D), "ffn_up": (self.hidden, D)}
        shapes |= {"ffn_down": (D, self.hidden), "layer_output_scale": (1,)}
        return as_weights(shapes)


@dataclasses.dataclass(frozen=True)
class Qwen35:
    """Qwen 3.5: gated delta nets, and gated attention in every fourth layer."""

    layers: int
    width: int
    hidden: int
    heads: int
    kv_heads: int
    #: Key heads, value heads and head width of the delta nets.
    delta: tuple[int, int, int]
    vocabulary: int
    #: Experts, experts per token, hidden units of each; None for a dense model.
    experts: tuple[int, int, int] | None = None
    head: int = 256
    taps: int = 4
    tied = False
    output_norm = "output_norm"

    @property
    def architecture(self) -> str:
        return "qwen35moe" if self.experts else "qwen35"

    def keys(self) -> dict:
        key_heads, value_heads, width = self.delta
        keys = {
            "feed_forward_length": self.hidden,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.kv_heads,
            "attention.key_length": self.head,
            "attention.value_length": self.head,
            "full_attention_interval": 4,
            "ssm.conv_kernel": self.taps,
            "ssm.state_size": width,
            "ssm.group_count": key_heads,
            "ssm.time_step_rank": value_heads,
            "ssm.inner_size": value_heads * width,
            "rope.dimension_count": self.head // 4,
            "rope.dimension_sections": np.array([11, 11, 10, 0], np.int32),
            "rope.freq_base": np.float32(1e7),
        }
        if self.experts:
            experts, used, each = self.experts
            keys |= {
                "expert_count": experts,
                "expert_used_count": used,
                "expert_feed_forward_length": each,
                "expert_shared_feed_forward_length": each,
            }
        return keys

    def block(self, i: int) -> Shapes:
        D = self.width
        shapes: Shapes = {"attn_norm": (D,), "post_attention_norm": (D,)}
        shapes |= self._attention() if i % 4 == 3 else self._delta_net()
        if self.experts is None:
            shapes |= {"ffn_gate": (self.hidden, D), "ffn_up": (self.hidden, D)}
            shapes["ffn_down"] = (D, self.hidden)
        else:
            experts, _, each = self.experts
            shapes |= {"ffn_gate_inp": (experts, D), "ffn_gate_inp_shexp": (D,)}
            shapes |= dict.fromkeys(("ffn_gate_exps", "ffn_up_exps"), (experts, each, D))
            shapes |= dict.fromkeys(("ffn_gate_shexp", "ffn_up_shexp"), (each, D))
            shapes |= {"ffn_down_exps": (experts, D, each), "ffn_down_shexp": (D, each)}
        named = as_weights(shapes)
        if i % 4 != 3:
            named |= {"ssm_a": (self.delta[1],), "ssm_dt.bias": (self.delta[1],)}
        return named

    def _attention(self) -> Shapes:
        D, queries, kv = self.width, self.heads * self.head, self.kv_heads * self.head
        return {
            "attn_q": (2 * queries, D),
            "attn_k": (kv, D),
            "attn_v": (kv, D),
            "attn_output": (D, queries),
            "attn_q_norm": (self.head,),
            "attn_k_norm": (self.head,),
        }

    def _delta_net(self) -> Shapes:
        key_heads, value_heads, width = self.delta
        D, values = self.width, value_heads * width
        channels = 2 * key_heads * width + values
        return {
            "attn_qkv": (channels, D),
            "attn_gate": (values, D),
            "ssm_conv1d": (channels, self.taps),
            "ssm_alpha": (value_heads, D),
            "ssm_beta": (value_heads, D),
            "ssm_norm": (width,),
            "ssm_out": (D, values),
        }


_STATE, _ATTENTION = ("state",), ("attention",)
_FEED_FORWARD = ("feed_forward",)
#: The pattern of layers of LFM2, and that of Granite 4-H.
_CONVOLUTION_AND_ATTENTION = [("convolution", "feed_forward")] * 2 + [("attention", "feed_forward")]
_MOSTLY_STATES = [("state", "feed_forward")] * 5 + [("attention", "feed_forward")]
#: The parts of layers in the patterns of Nemotron-H.
_PARTS = {"M": _STATE, "-": _FEED_FORWARD, "*": _ATTENTION}

#: name -> the shape. Shapes called "few" have the widths of a real model, but few layers and a
#: small vocabulary, so that a machine with little memory can measure all kinds of layers.
SHAPES = {
    "gemma-4-12b": Gemma4(48, 3840, 15360, 16, (8, 256), (2, 512), 1024, 262144),
    "qwen3.5-9b": Qwen35(32, 4096, 12288, 16, 4, (16, 32, 128), 248320),
    "qwen3.5-35b-a3b": Qwen35(40, 2048, 2048, 16, 2, (16, 32, 128), 248320, (256, 8, 512)),
    "gemma4-few": Gemma4(6, 2048, 8192, 8, (4, 256), (1, 512), 1024, 16384),
    "qwen35-few": Qwen35(8, 2048, 6144, 8, 2, (16, 16, 128), 16384),
    "qwen35moe-few": Qwen35(4, 2048, 2048, 16, 2, (16, 32, 128), 8192, (128, 8, 512)),
    "lfm2-few": ShortConvolutions(
        "lfm2", 2048, 8192, 16384, tuple(_CONVOLUTION_AND_ATTENTION * 2), (32, 8, 64)
    ),
    "granite-4-h-micro": StateSpace(
        "granitehybrid",
        2048,
        8192,
        100352,
        tuple(("attention" if i % 10 == 5 else "state", "feed_forward") for i in range(40)),
        (32, 8, 64),
    ),
    "nemotron-h-8b": StateSpace(
        "nemotron_h",
        4096,
        21504,
        131072,
        tuple(map(_PARTS.get, "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-")),
        (32, 8, 128),
        gated=False,
        state=(128, 64, 128, 8),
    ),
    "mamba2-few": StateSpace("mamba2", 2048, 0, 16384, (_STATE,) * 16, (0, 0, 0)),
    "granitehybrid-few": StateSpace(
        "granitehybrid", 2048, 8192, 16384, tuple(_MOSTLY_STATES), (32, 8, 64)
    ),
    "nemotron_h-few": StateSpace(
        "nemotron_h",
        2048,
        8192,
        16384,
        (_STATE, _FEED_FORWARD, _STATE, _FEED_FORWARD, _STATE, _ATTENTION, _FEED_FORWARD) * 2,
        (32, 8, 128),
        gated=False,
        state=(64, 64, 128, 8),
    ),
    "falcon-h1-few": StateSpace(
        "falcon-h1",
        2048,
        4096,
        16384,
        (("attention", "state", "feed_forward"),) * 8,
        (8, 2, 128),
        state=(48, 64, 256, 1),
        state_norm=False,
    ),
    "deepseek2-few": Latent(
        3, 2048, 10240, 16384, 20, (768, 512), (192, 64, 256), experts=(64, 4, 1536)
    ),
}


def tensor_shapes(name: str) -> Shapes:
    """The shapes of all tensors of a file, row-major."""
    shape = SHAPES[name]
    shapes: Shapes = {"token_embd.weight": (shape.vocabulary, shape.width)}
    shapes[f"{shape.output_norm}.weight"] = (shape.width,)
    if not shape.tied:
        shapes["output.weight"] = (shape.vocabulary, shape.width)
    for i in range(shape.layers):
        shapes |= {f"blk.{i}.{tensor}": size for tensor, size in shape.block(i).items()}
    return shapes
