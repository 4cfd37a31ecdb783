"""Gemma 3n: several residual streams, and per-layer inputs."""

import dataclasses
import math
from typing import Any

from rocmforge_jax.models.altup import AltUp
from rocmforge_jax.models.config import DecoderConfig, LayerConfig
from rocmforge_jax.models.families.gemma import gemma
from rocmforge_jax.models.families.shared import POST_NORMS, UNUSED_KV, with_shared_kv
from rocmforge_jax.models.keys import KeyReader
from rocmforge_jax.models.laurel import Laurel
from rocmforge_jax.models.mixers import Attention
from rocmforge_jax.models.per_layer_input import PerLayerInput
from rocmforge_jax.models.read_attention import head_width
from rocmforge_jax.models.read_rope import rope, window_rope

#: Defaults for missing keys: the number of layers with their own KV cache; the number of layers
#: whose gates have a cutoff; and the cutoff, which 5 % of normally distributed gates exceed.
_OWN, _SPARSE, _CUTOFF = 20, 10, 1.6448533535003662


def gemma3n(keys: KeyReader) -> DecoderConfig:
    """Gemma 3n E2B and E4B: four residual streams, of which each layer computes only the first."""
    streams = keys.integer("altup.num_inputs", 4, low=2)
    keys.integer("altup.active_idx", 0, low=0, high=0)
    width = keys.integer("embedding_length_per_layer_input", 256)
    cutoffs = keys.reals(
        "activation_sparsity_scale",
        [_CUTOFF if i < _SPARSE else -math.inf for i in range(keys.layers)],
    )
    config = gemma(
        keys,
        norms=POST_NORMS,
        attention=dict(qk_norm="head", v_norm=True, scale=1.0),
        mixer=_attention(keys),
        logit_cap=keys.optional_real("final_logit_softcapping", 30.0),
    )

    def layer(i: int, one: LayerConfig) -> LayerConfig:
        feed: Any = one.feed_forward
        cutoff = cutoffs[i] if math.isfinite(cutoffs[i]) else None
        borrows = isinstance(one.mixer, Attention) and one.mixer.source is not None
        return dataclasses.replace(
            one,
            feed_forward=dataclasses.replace(feed, cutoff=cutoff),
            per_layer_input=PerLayerInput(width),
            laurel=Laurel(keys.outputs(i, "laurel_l.weight") or 64),
            altup=AltUp(streams),
            unused=UNUSED_KV if borrows else frozenset(),
        )

    return dataclasses.replace(
        config, layers=tuple(layer(i, one) for i, one in enumerate(config.layers))
    )


def _attention(keys: KeyReader):
    """Returns the function for the argument `mixer` of `llama_like`."""
    windows = keys.windows(5)
    shared = keys.layers - _OWN if keys.layers > _OWN else 0
    own = keys.layers - keys.integer("attention.shared_kv_layers", shared, 0, keys.layers - 2)
    full = rope(keys, head_width(keys), interleaved=False)
    rotary = window_rope(keys, full, 10000.0)

    def mixer(i: int, attention: Attention | None) -> Attention | None:
        if attention is None:
            return None
        if windows[i] is not None:
            attention = dataclasses.replace(attention, window=windows[i], rope=rotary)
        return with_shared_kv(attention, i, own, keys.layers, windows[i])

    return mixer
