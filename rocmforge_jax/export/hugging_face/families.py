"""What the families of transformers call weights and settings."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from rocmforge_jax.export.hugging_face.rope import rope_settings
from rocmforge_jax.models import Attention, DecoderConfig, Gated, LayerConfig, Norms
from rocmforge_jax.nn import GELU, SILU, ActivationFunction, RopeConfig

#: Modules outside of the layers, and those that all families have in a layer.
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
#: The names of Gemma 2 and 3, with norms after each part.
_GEMMA2_NAMES = _NAMES | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_POST_NORMS = dict(after_mixer="post_attention_norm", after_feed_forward="post_ffw_norm")
_QKV = frozenset(("attn_q", "attn_k", "attn_v"))
_ALL_ATTENTION = _QKV | {"attn_output"}


def _nothing(config: DecoderConfig, mixer: Attention) -> dict[str, Any]:
    return {}


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of transformers.

    Attributes:
        model_type: Its name in config.json.
        class_name: The class of its decoder with a head.
        settings: (configuration, attention of a layer) -> further settings of config.json.
        names: Module of a layer in GGUF files -> its name in transformers.
        attention: Fields of every `Attention`.
        variable: Fields of `Attention` that settings say, and so may have any value.
        norms: Changes of the `Norms` of every layer.
        activation: Of the gates.
        biases: The biases that layers have, in each of the ways that there are.
        interleaved: Whether pairs that rotate are neighbours in GGUF files, which transformers
            has half a head apart.
        norm_offset: What transformers adds to the weights of norms, which GGUF files hold.
        windows: Whether layers may have windows.
        scales_embedding: Whether embeddings are multiplied by the root of the width.
        caps_logits: Whether logits may have a cap.
    """

    model_type: str
    class_name: str
    settings: Callable[[DecoderConfig, Attention], dict[str, Any]] = _nothing
    names: Mapping[str, str] = dataclasses.field(default_factory=lambda: _NAMES)
    attention: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    variable: tuple[str, ...] = ()
    norms: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    activation: ActivationFunction = SILU
    biases: tuple[frozenset[str], ...] = (frozenset(),)
    interleaved: bool = False
    norm_offset: int = 0
    windows: bool = False
    scales_embedding: bool = False
    caps_logits: bool = False

    def name(self, tensor: str) -> str | None:
        """Returns what transformers calls a tensor of a GGUF file, None if it has no such one."""
        module, _, suffix = tensor.rpartition(".")
        if module in _OUTSIDE:
            return f"{_OUTSIDE[module]}.{suffix}"
        layer, _, of_layer = module.removeprefix("blk.").partition(".")
        known = self.names.get(of_layer)
        return None if known is None else f"model.layers.{layer}.{known}.{suffix}"

    def meant(self, config: DecoderConfig) -> DecoderConfig:
        """Returns the configuration that transformers computes with the settings of this one."""
        first: Any = config.layers[0]
        biases = first.biases if first.biases in self.biases else self.biases[0]
        layers = tuple(self._layer(config, layer, biases) for layer in config.layers)
        return DecoderConfig(
            layers=layers,
            width=config.width,
            vocabulary=config.vocabulary,
            context_length=config.context_length,
            norm_epsilon=config.norm_epsilon,
            tied=config.tied,
            embedding_scale=config.width**0.5 if self.scales_embedding else 1.0,
            logit_cap=config.logit_cap if self.caps_logits else None,
            pooling=config.pooling,
            architecture=config.architecture,
        )

    def _layer(self, config: DecoderConfig, layer: LayerConfig, biases) -> LayerConfig:
        first, mixer, feed = config.layers[0].mixer, layer.mixer, layer.feed_forward
        if not isinstance(first, Attention) or not isinstance(mixer, Attention):
            return dataclasses.replace(layer, mixer=None)
        window = mixer.window if self.windows else None
        made = Attention(
            first.heads,
            first.kv_heads,
            first.head_width,
            self._rope(config, window is not None),
            window=window,
            **self.attention,
            **{name: getattr(first, name) for name in self.variable},
        )
        hidden = feed.hidden if isinstance(feed, Gated) else 1
        norms = Norms(config.norm_epsilon, **self.norms)
        return LayerConfig(made, Gated(hidden, self.activation), norms, biases=biases)

    def _rope(self, config: DecoderConfig, windowed: bool) -> RopeConfig | None:
        """Returns the rotary embedding that layers of a kind have: that of the first of them."""
        mixers: list[Any] = [layer.mixer for layer in config.layers]
        rope = next(
            (
                one.rope
                for one in mixers
                if isinstance(one, Attention) and (one.window is not None) == windowed
            ),
            None,
        )
        if rope is None:
            return None
        scale = 1.0 if windowed else rope.scale
        factors = None if windowed else rope.factors
        return RopeConfig(rope_width(config), rope.base, self.interleaved, scale, factors)


def rope_width(config: DecoderConfig) -> int:
    """All elements of a head rotate."""
    mixer: Any = config.layers[0].mixer
    return mixer.head_width


def settings(family: Family, config: DecoderConfig) -> dict[str, Any]:
    """Returns config.json of a configuration."""
    mixer: Any = config.layers[0].mixer
    feed: Any = config.layers[0].feed_forward
    full = [one.mixer for one in config.layers if getattr(one.mixer, "window", None) is None]
    rope: Any = getattr((full or [mixer])[0], "rope", None)
    return {
        "architectures": [family.class_name],
        "model_type": family.model_type,
        "hidden_size": config.width,
        "intermediate_size": feed.hidden,
        "num_hidden_layers": len(config.layers),
        "num_attention_heads": mixer.heads,
        "num_key_value_heads": mixer.kv_heads,
        "head_dim": mixer.head_width,
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tied,
        "hidden_act": "silu",
        **rope_settings(rope),
        **family.settings(config, mixer),
    }


def _llama(config: DecoderConfig, mixer: Attention) -> dict[str, Any]:
    biases = config.layers[0].biases
    return {"attention_bias": "attn_q" in biases, "mlp_bias": "ffn_up" in biases}


def _gemma(config: DecoderConfig, mixer: Attention) -> dict[str, Any]:
    name = "gelu_pytorch_tanh"
    return {"hidden_act": name, "hidden_activation": name}


def _gemma2(config: DecoderConfig, mixer: Attention) -> dict[str, Any]:
    """Windows, caps and the scale of scores."""
    windows = [getattr(layer.mixer, "window", None) for layer in config.layers]
    scale = mixer.head_width if mixer.scale is None else mixer.scale**-2
    return _gemma(config, mixer) | {
        "query_pre_attn_scalar": round(scale) if abs(scale - round(scale)) < 1e-3 else scale,
        "sliding_window": next((window for window in windows if window is not None), 4096),
        "layer_types": [
            "full_attention" if window is None else "sliding_attention" for window in windows
        ],
        "attn_logit_softcapping": mixer.soft_cap,
        "final_logit_softcapping": config.logit_cap,
    }


def _gemma3(config: DecoderConfig, mixer: Attention) -> dict[str, Any]:
    """Likewise, and a rotary base of the layers with windows."""
    mixers: list[Any] = [layer.mixer for layer in config.layers]
    base = next((one.rope.base for one in mixers if one.window is not None), 10000.0)
    return _gemma2(config, mixer) | {"rope_local_base_freq": base}


_GEMMA: dict[str, Any] = dict(activation=GELU, norm_offset=1, scales_embedding=True)
#: By the value of general.architecture.
FAMILIES = {
    "llama": Family(
        "llama",
        "LlamaForCausalLM",
        _llama,
        interleaved=True,
        biases=(frozenset(), _ALL_ATTENTION),
    ),
    "qwen2": Family("qwen2", "Qwen2ForCausalLM", biases=(_QKV,)),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", attention=dict(qk_norm="head")),
    "gemma": Family("gemma", "GemmaForCausalLM", _gemma, **_GEMMA),
    "gemma2": Family(
        "gemma2",
        "Gemma2ForCausalLM",
        _gemma2,
        _GEMMA2_NAMES,
        variable=("scale", "soft_cap"),
        norms=_POST_NORMS,
        windows=True,
        caps_logits=True,
        **_GEMMA,
    ),
    "gemma3": Family(
        "gemma3_text",
        "Gemma3ForCausalLM",
        _gemma3,
        _GEMMA2_NAMES,
        attention=dict(qk_norm="head"),
        variable=("scale", "soft_cap"),
        norms=_POST_NORMS,
        windows=True,
        caps_logits=True,
        **_GEMMA,
    ),
}
