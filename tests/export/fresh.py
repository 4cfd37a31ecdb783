"""Decoders of random weights that came from no file, one of each family that is saved."""

import dataclasses

from flax import nnx

from rocmforge_jax.models import Attention, Decoder, DecoderConfig, Gated
from rocmforge_jax.nn import GELU, RopeConfig

WIDTH, HEAD = 42, 8
_POST = dict(after_mixer="post_attention_norm", after_feed_forward="post_ffw_norm")
_GEMMA = dict(gated=dict(activation=GELU), embedding_scale=WIDTH**0.5)
_QKV = frozenset(("attn_q", "attn_k", "attn_v"))
FAMILIES = {
    "llama": {},
    "llama, untied, with biases": dict(tied=False, biases=_QKV | {"attn_output"}),
    "llama, linear scaling": dict(rope=dict(scale=4.0)),
    "qwen2": dict(biases=_QKV),
    "qwen3": dict(attention=dict(qk_norm="head"), tied=False),
    "gemma": _GEMMA,
    "gemma2": _GEMMA
    | dict(
        norms=_POST, attention=dict(soft_cap=30.0), logit_cap=20.0, windows=(16, None, 16, None)
    ),
    "gemma3": _GEMMA
    | dict(
        norms=_POST,
        attention=dict(qk_norm="head"),
        windows=(24, 24, None, 24),
        rope=dict(base=1e6, scale=8.0),
        window_base=1e4,
    ),
}


def decoder(name: str) -> Decoder:
    """Makes the decoder of an entry of `FAMILIES`."""
    options = dict(FAMILIES[name])
    architecture = name.partition(",")[0]
    rope = RopeConfig(
        HEAD, **(dict(base=5e4, interleaved=architecture == "llama") | options.pop("rope", {}))
    )
    mixer = Attention(6, 2, HEAD, rope, **options.pop("attention", {}))
    windows, base = options.pop("windows", (None,) * 4), options.pop("window_base", None)
    feed = Gated(72, **options.pop("gated", {}))
    sizes = dict(width=WIDTH, vocabulary=91, context_length=128, architecture=architecture)
    config = DecoderConfig.uniform(4, mixer, feed, norm_epsilon=1e-5, **(sizes | options))

    def layer(one, window):
        own = rope if window is None or base is None else RopeConfig(HEAD, base)
        return dataclasses.replace(one, mixer=dataclasses.replace(mixer, window=window, rope=own))

    layers = tuple(layer(*pair) for pair in zip(config.layers, windows))
    made = Decoder(dataclasses.replace(config, layers=layers), rngs=nnx.Rngs(len(name)))
    _draw_vectors(made)
    return made


def _draw_vectors(decoder: Decoder) -> None:
    """Draws norms and biases, which are ones and zeros in a fresh decoder."""
    rngs = nnx.Rngs(7)
    for _, module in nnx.iter_modules(decoder):
        for name in ("scale", "bias"):
            variable = getattr(module, name, None)
            if isinstance(variable, nnx.Variable):
                variable.set_value(variable.get_value() + 0.2 * rngs.normal(variable.shape))
