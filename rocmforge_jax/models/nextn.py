"""Multi-token prediction: blocks that predict one token further ahead than the decoder."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from rocmforge_jax.backends import Numerics
from rocmforge_jax.backends.on_mesh import on_its_mesh
from rocmforge_jax.models.checked_inputs import checked_inputs, with_nan_past_the_cache
from rocmforge_jax.models.config import DecoderConfig, NextNConfig
from rocmforge_jax.models.empty_cache import cache_of_layers, placement_of
from rocmforge_jax.models.layer import Layer, submodule
from rocmforge_jax.models.make import Make
from rocmforge_jax.models.parts import Tokens
from rocmforge_jax.nn import Cache, Embedding, Linear, products


class _Submodules(nnx.Module):
    """A block's submodules in addition to those of a layer; their names begin with `nextn`."""

    def __init__(self, config: NextNConfig, make: Make, vocabulary: int):
        width = make.width
        self.enorm = make.norm("nextn.enorm", width)
        self.hnorm = make.norm("nextn.hnorm", width)
        self.eh_proj = make.linear("nextn.eh_proj", 2 * width, width)
        if config.own_embedding:
            self.embed_tokens = Embedding(vocabulary, width, numerics=make.numerics, rngs=make.rngs)
        if config.own_head:
            self.shared_head_head = make.linear("nextn.shared_head_head", width, vocabulary)
        if config.norm == "nextn.shared_head_norm":
            self.shared_head_norm = make.norm("nextn.shared_head_norm", width)


class NextN(Layer):
    """A block for multi-token prediction, which predicts the token after the next one.

    Its input combines the decoder's hidden state of a token with the embedding of the following
    token. If the file has no embedding, last norm or head for the block, it uses the decoder's.
    """

    def __init__(
        self,
        config: NextNConfig,
        decoder: DecoderConfig,
        *,
        numerics: Numerics,
        rngs: nnx.Rngs | None,
    ):
        layer = config.layer
        super().__init__(layer, decoder.width, numerics=numerics, rngs=rngs)
        make = Make(layer.norms, layer.biases, layer.output_scales, decoder.width, numerics, rngs)
        self.nextn = _Submodules(config, make, decoder.vocabulary)
        self.norm_name = config.norm
        if config.norm == "layer_output_norm":
            self.layer_output_norm = make.norm("layer_output_norm", decoder.width)

    def init_cache(self, batch: int, length: int, dtype=None) -> Cache:
        """Makes the block's own empty cache: see `Decoder.init_cache`."""
        dtype = self.numerics.cache_dtype if dtype is None else dtype
        return cache_of_layers((self.config,), batch, length, dtype, placement_of(self))

    @on_its_mesh
    def predict(
        self,
        decoder: Any,
        hidden_BTD,
        tokens_BT,
        cache: Cache | None = None,
        *,
        positions_BT=None,
        lengths_B=None,
    ):
        """Computes the logits of the token that follows each given token.

        Args:
            decoder: The decoder to which the block belongs.
            hidden_BTD: Hidden states from `Decoder.hidden` or from an earlier block. Entry t
                belongs to the token before tokens_BT[:, t].
            tokens_BT: Integer ids.
            cache: The block's own cache with the earlier tokens. Default: no cache, a single
                causal pass.
            positions_BT: The positions of the tokens. Default: consecutive, starting at 1 plus the
                number of tokens in the cache. The first token of a text has no predecessor, so the
                block never processes position 0.
            lengths_B: See `Decoder`.

        Returns:
            Logits, float32 [B, T, V]; hidden states for a following block, [B, T, D]; and the
            cache with these tokens, or None.

        Raises:
            ValueError: Shapes do not fit, or an id is outside the vocabulary.
        """
        arrays = checked_inputs(
            tokens_BT, cache, positions_BT, lengths_B, decoder.config.vocabulary
        )
        tokens_BT, positions_BT, lengths_B = arrays
        (B, T), width = tokens_BT.shape, decoder.config.width
        if hidden_BTD.shape != (B, T, width):
            raise ValueError(
                f"hidden must be {[B, T, width]} for tokens {[B, T]} of a decoder of width {width},"
                f" got {list(hidden_BTD.shape)}"
            )
        starts_B = jnp.zeros((B,), jnp.int32) if cache is None else cache.lengths_B
        if positions_BT is None:
            positions_BT = starts_B[:, None] + jnp.arange(1, T + 1, dtype=jnp.int32)[None]
        x_BTD = self._combine(decoder, hidden_BTD, tokens_BT)
        state = None if cache is None else cache.layers[0]
        x_BTD, state = self(x_BTD, Tokens(positions_BT, starts_B, lengths_B), state)
        if cache is not None and state is not None:
            x_BTD = with_nan_past_the_cache(x_BTD, cache, starts_B, T)
            added_B = T if lengths_B is None else lengths_B.astype(jnp.int32)
            cache = Cache((state,), starts_B + jnp.int32(added_B), cache.length)
        hidden_BTD = self._last_norm(decoder)(x_BTD)
        return decoder.logits(hidden_BTD, self._own("shared_head_head")), hidden_BTD, cache

    def _combine(self, decoder, hidden_BTD, tokens_BT):
        """Projects the normalised embeddings and hidden states, concatenated, to width D."""
        embedding: Any = self._own("embed_tokens") or decoder.token_embd
        dtype = self.numerics.dtype
        embedded_BTD = self.nextn.enorm(embedding(tokens_BT, dtype))
        both = jnp.concatenate([embedded_BTD, self.nextn.hnorm(hidden_BTD.astype(dtype))], axis=-1)
        return products(both, [self.nextn.eh_proj])[0]

    def _last_norm(self, decoder) -> Any:
        if self.norm_name is None:
            return decoder.last_norm
        return submodule(self, self.norm_name)

    def _own(self, name: str) -> Linear | Embedding | None:
        """Returns the block's own embedding or head, or None."""
        return getattr(self.nextn, name, None)
