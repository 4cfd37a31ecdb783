"""Attention probabilities of a layer."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from rocmforge_jax.arguments import integer
from rocmforge_jax.explore.prompts import Text, read_prompt
from rocmforge_jax.explore.watch import require_one_stream, watch
from rocmforge_jax.models import Attention, Decoder, Layer, ParallelMixers
from rocmforge_jax.models.layer import submodule
from rocmforge_jax.nn import KVState, cached_attention


@dataclasses.dataclass(frozen=True, repr=False)
class AttentionMap:
    """How much each token of a prompt attends to each.

    Attributes:
        prompt_ids: int32 [T].
        prompt_pieces: Their texts.
        layer: The number of the layer.
        heads: The numbers of the query heads.
        probabilities: float32 [heads, T, T], from the token of a row to that of a column. A row
            adds up to 1, or less where a sink takes its share.
    """

    prompt_ids: np.ndarray
    prompt_pieces: list[str]
    layer: int
    heads: tuple[int, ...]
    probabilities: np.ndarray

    def __repr__(self):
        N, T, _ = self.probabilities.shape
        return f"<AttentionMap of layer {self.layer}: {N} heads, {T} x {T} tokens>"


def attention_map(lm: Any, prompt: Text, layer: int, head: int | None = None) -> AttentionMap:
    """Computes the attention probabilities of a layer, with its windows, caps, sinks and slopes.

    They are those of the layer's own queries and keys, in float32.

    Args:
        lm: A LanguageModel; or a Decoder, for a prompt of ids.
        prompt: A text, or the ids of its tokens.
        layer: The number of the layer, from 0 on.
        head: The number of a query head. Default: all.

    Raises:
        TypeError: `lm` or the prompt is of another type, or the block is no Layer.
        ValueError: The layer has no attention with probabilities, there is no such layer or head,
            or as `read_prompt`.
    """
    read = read_prompt(lm, prompt)
    require_one_stream(read.model, "attention_map")
    layer = integer("layer", layer, 0, len(read.model.config.layers) - 1)
    mixer = _attention_of(read.model, layer)
    heads = range(mixer.heads) if head is None else [integer("head", head, 0, mixer.heads - 1)]
    T = len(read.ids)
    probabilities = watch(read, _Probabilities(layer))[list(heads), :T, :T]
    return AttentionMap(read.ids, read.pieces(read.ids), layer, tuple(heads), probabilities)


def _attention_of(model: Decoder, number: int) -> Attention:
    """Returns the grouped-query attention of a layer."""
    block = model.blk[number]
    if not isinstance(block, Layer):
        raise TypeError(f"block {number} is a {type(block).__name__}, no Layer with a mixer")
    mixer = block.config.mixer
    for one in mixer.mixers if isinstance(mixer, ParallelMixers) else (mixer,):
        if isinstance(one, Attention):
            return one
    kind = "no mixer" if mixer is None else f"a {type(mixer).__name__}"
    layers = [
        str(i)
        for i, config in enumerate(model.config.layers)
        if isinstance(config.mixer, Attention | ParallelMixers)
    ]
    having = f": layers {', '.join(layers)} have one" if layers else ""
    raise ValueError(
        f"layer {number} of this {model.config.architecture} has {kind}, which has no map of"
        f" attention{having}"
    )


@dataclasses.dataclass(frozen=True)
class _Probabilities:
    layer: int

    def __call__(self, model, steps, hidden_BTD):
        mixer, step = _attention_of(model, self.layer), steps[self.layer]
        block = model.blk[self.layer]
        norm = submodule(block, block.config.norms.before_mixer)
        # Another mixer of the layer may have another table.
        tokens = dataclasses.replace(step.tokens, rope=None)
        q_BTNH, held, rule = mixer.operands(block, step.before, norm, tokens, step.state)
        return _weights(q_BTNH, held, rule, tokens)[0]


def _weights(q_BTNH, held: KVState, rule, tokens):
    """Returns the weights of attention, float32 [B, N, T, S].

    They are attention to values that are rows of the identity matrix. Queries and keys are padded
    with zeros to the width of those.
    """
    H, S = q_BTNH.shape[-1], held.length
    width = max(H, S)
    q_BTNH = jnp.pad(q_BTNH.astype(jnp.float32), ((0, 0), (0, 0), (0, 0), (0, width - H)))
    keys_BKHS = held.keys.astype(jnp.float32)
    keys_BKHS = jnp.pad(keys_BKHS, ((0, 0), (0, 0), (0, width - H), (0, 0)))
    shape = *held.values.shape[:2], S, width
    values_BKSH = jnp.broadcast_to(jnp.eye(S, width, dtype=jnp.float32), shape)
    weights_BTNH = cached_attention(
        q_BTNH,
        KVState(keys_BKHS, values_BKSH),
        tokens.starts_B,
        rule,
        filled_B=None if rule.causal else tokens.lengths_B,
        backend="xla",
    )
    return jnp.moveaxis(weights_BTNH[..., :S], 1, 2)
