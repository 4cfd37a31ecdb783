"""The input of the first layer: embeddings of tokens, and in some models of positions and types."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from rocmforge_jax.backends import Numerics
from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.models.make import make_norm
from rocmforge_jax.nn import Embedding


def input_modules(
    config: DecoderConfig, numerics: Numerics, rngs: nnx.Rngs | None
) -> Mapping[str, nnx.Module]:
    """Makes the embeddings and their norm, by their names in the file."""
    how: dict[str, Any] = dict(numerics=numerics, rngs=rngs)
    tables = {
        "token_embd": config.vocabulary,
        "token_types": config.token_types,
        "position_embd": config.positions,
    }
    made: dict[str, nnx.Module] = {
        name: Embedding(rows, config.width, **how) for name, rows in tables.items() if rows
    }
    if (name := config.embedding_norm) is not None:
        sizes = config.width, config.norm_epsilon
        made[name] = make_norm(config.norm_kind, *sizes, name in config.biases)
    return made


def embed_tokens(decoder, tokens_BT, positions_BT, inputs_embeds=None):
    """Computes the residual stream before the first layer.

    Args:
        decoder: A decoder with the submodules of `input_modules`.
        tokens_BT: Integer ids.
        positions_BT: The positions, used by learned position embeddings.
        inputs_embeds: [B, T, D], replaces the token embeddings. It is scaled, summed and
            normalised like them.

    Returns:
        [B, T, D] in the decoder's dtype.
    """
    config, dtype = decoder.config, decoder.numerics.dtype

    def rows(dtype):
        if inputs_embeds is not None:
            return inputs_embeds.astype(dtype)
        return decoder.token_embd(tokens_BT, dtype)

    scale, sums = config.embedding_scale, config.token_types or config.positions
    if scale == 1 and not sums and config.embedding_norm is None:
        return rows(dtype)
    x_BTD = rows(jnp.float32)
    if scale != 1:
        x_BTD = x_BTD * jnp.float32(scale)
    if config.token_types:
        x_BTD = x_BTD + decoder.token_types(jnp.zeros((1, 1), jnp.int32), jnp.float32)
    if config.positions:
        x_BTD = x_BTD + decoder.position_embd(positions_BT, jnp.float32)
    if config.embedding_norm is not None:
        x_BTD = getattr(decoder, config.embedding_norm)(x_BTD)
    return x_BTD.astype(dtype)
