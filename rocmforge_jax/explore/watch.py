"""Runs a decoder over a prompt and reads what passes between its layers."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rocmforge_jax.explore.prompts import Prompt
from rocmforge_jax.models import Decoder, Tokens
from rocmforge_jax.models.sharding import on_automatic_axes
from rocmforge_jax.nn import shared_trace

#: Prompts are padded to powers of two from here on, so that few programs are compiled.
SMALLEST_LENGTH = 16


class Step(NamedTuple):
    """What a layer was called with, and what it returned.

    Attributes:
        before: The residual stream before the layer, [1, T, D]; [A, 1, T, D] with A streams.
        tokens: Positions and lengths.
        state: With keys and values of another layer, the state of that layer; else None.
        after: The residual stream after the layer.
    """

    before: Any
    tokens: Tokens
    state: Any
    after: Any


class Watched:
    """A block that notes each call. The decoder calls it in the block's place."""

    def __init__(self, block: Any, steps: list[Step]):
        self._block, self._steps = block, steps

    def __call__(self, x, tokens, state=None):
        """Calls the block."""
        after, new = shared_trace(self._block, x, tokens, state)
        self._steps.append(Step(x, tokens, state, after))
        return after, new


def watch(prompt: Prompt, read: Callable[[Decoder, list[Step], Any], Any]) -> Any:
    """Computes a prompt and returns what `read` makes of it, as NumPy arrays.

    The model computes as it always does, on its own backend; `read` is part of the program.

    Args:
        prompt: The prompt.
        read: Hashable, called with the decoder, the steps of its layers, and what its head reads,
            [1, T, D]. Arrays are longer than the prompt: the rest is padding.
    """
    T = len(prompt.ids)
    power = max(SMALLEST_LENGTH, 1 << (T - 1).bit_length())
    padded = max(T, prompt.model.config.text_length(power))
    tokens = np.zeros((1, padded), np.int32)
    tokens[0, :T] = prompt.ids
    graphdef, state = nnx.split(prompt.model)
    state = jax.tree.map(on_automatic_axes, state)
    found = _watch(graphdef, read, state, jnp.asarray(tokens), jnp.array([T], jnp.int32))
    return jax.device_get(found)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _watch(graphdef, read, state, tokens_BT, lengths_B):
    model, steps = nnx.merge(graphdef, state), []
    blocks = list(model.blk)
    for i, block in enumerate(blocks):
        model.blk[i] = Watched(block, steps)
    hidden_BTD, _ = model.hidden(tokens_BT, lengths_B=lengths_B)
    for i, block in enumerate(blocks):
        model.blk[i] = block
    return read(model, steps, hidden_BTD)


def require_one_stream(model: Decoder, what: str) -> None:
    """Raises ValueError for a model whose layers pass on several residual streams."""
    if model.config.streams > 1:
        raise ValueError(
            f"{what} reads one residual stream, the layers of this {model.config.architecture} pass"
            f" on {model.config.streams}"
        )
