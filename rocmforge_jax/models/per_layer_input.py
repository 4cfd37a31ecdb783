"""Per-layer inputs, in addition to the residual stream, as in Gemma 4 E2B and E4B."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from rocmforge_jax.backends import Numerics
from rocmforge_jax.models.make import Make, check_sizes
from rocmforge_jax.nn import GELU, Activated, Embedding, Linear, RMSNorm, products


@dataclasses.dataclass(frozen=True)
class PerLayerInput:
    """Computes post_norm(proj(gelu(inp_gate(x)) * input)), which a layer adds to the stream x.

    Attributes:
        width: The width of the input, P.
    """

    width: int

    def __post_init__(self):
        check_sizes(width=self.width)

    def modules(self, make: Make) -> Mapping[str, nnx.Module]:
        """Makes the projections and the norm."""
        return {
            "inp_gate": make.linear("inp_gate", make.width, self.width),
            "proj": make.linear("proj", self.width, make.width),
            "post_norm": make.norm("post_norm", make.width),
        }

    def __call__(self, layer, x_BTD, inputs_BTP):
        """Computes the term for the residual stream, [B, T, D]."""
        (gate_BTP,) = products(x_BTD, [Activated(layer.inp_gate, GELU)])
        (y_BTD,) = products(gate_BTP * inputs_BTP, [layer.proj])
        return layer.post_norm(y_BTD)


def embedding_modules(
    vocabulary: int,
    width: int,
    inputs: tuple[int, int],
    epsilon: float,
    numerics: Numerics,
    rngs: nnx.Rngs | None,
) -> Mapping[str, nnx.Module]:
    """Makes the submodules of a decoder that `per_layer_inputs` needs.

    Args:
        vocabulary: The size of the vocabulary, V.
        width: The width of the residual stream, D.
        inputs: The number of layers, L, and the width of their inputs, P.
        epsilon: Epsilon of the norm.
        numerics: The decoder's numerics.
        rngs: Random numbers for the initial weights; None inside `nn.only_shapes`.
    """
    total = math.prod(inputs)
    how: dict[str, Any] = dict(numerics=numerics, rngs=rngs)
    return {
        "per_layer_token_embd": Embedding(vocabulary, total, **how),
        "per_layer_model_proj": Linear(width, total, **how),
        "per_layer_proj_norm": RMSNorm(inputs[1], epsilon=epsilon),
    }


def per_layer_inputs(decoder, tokens_BT, x_BTD, width: int):
    """Computes the inputs of all layers, [L, B, T, P], from the tokens and their embeddings.

    Args:
        decoder: A decoder with the submodules of `embedding_modules`.
        tokens_BT: Integer ids.
        x_BTD: The residual stream before the first layer.
        width: The width of an input, P.
    """
    shape, dtype = (*tokens_BT.shape, -1, width), x_BTD.dtype
    of_tokens = decoder.per_layer_token_embd(tokens_BT, jnp.float32).reshape(shape)
    (projected,) = products(x_BTD, [decoder.per_layer_model_proj], dtype=jnp.float32)
    projected = projected * jnp.float32(x_BTD.shape[-1] ** -0.5)
    normed = decoder.per_layer_proj_norm(projected.reshape(shape))
    sum_BTLP = (normed + of_tokens * jnp.float32(math.sqrt(width))) * jnp.float32(math.sqrt(0.5))
    return jnp.moveaxis(sum_BTLP, 2, 0).astype(dtype)
