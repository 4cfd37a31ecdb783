"""The decoder that every architecture here is a setting of: token ids to states and logits."""

import dataclasses
import math
import warnings
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from rocmforge_jax import settings
from rocmforge_jax.backends import DEFAULT, Numerics
from rocmforge_jax.backends.explicit_axes import explicit_mesh, in_auto_axes, spec_of
from rocmforge_jax.backends.on_mesh import on_its_mesh, split_batch
from rocmforge_jax.models.altup import merged, stacked, stream_modules
from rocmforge_jax.models.checked_inputs import (
    check_length,
    check_positions,
    checked_inputs,
    checked_pooling,
    with_nan_past_the_cache,
)
from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.models.empty_cache import init_cache, placement_of
from rocmforge_jax.models.layer import Layer
from rocmforge_jax.models.make import make_norm
from rocmforge_jax.models.nextn import NextN
from rocmforge_jax.models.overview import NotTabulated, decoder_html, short_attributes
from rocmforge_jax.models.parts import Tokens
from rocmforge_jax.models.patterns import Patterns
from rocmforge_jax.models.per_layer_input import embedding_modules, per_layer_inputs
from rocmforge_jax.models.requantize import Types, dequantized, requantized
from rocmforge_jax.models.token_inputs import embed_tokens, input_modules
from rocmforge_jax.models.visibility import embeds_like_tokens, segment_places, visible
from rocmforge_jax.nn import (
    Cache,
    Embedding,
    Linear,
    TiedHead,
    products,
    rope_table,
    shared_trace,
)


class Decoder(nnx.Module):
    """Maps token ids to logits.

    A fresh decoder has random weights in float32 and can be trained. `rocmforge_jax.load` makes one
    with a file's weights.

    Attributes:
        config: Sizes and options.
        numerics: What activations and the cache are computed in, and by which backend.
        remat: Whether gradients compute each layer again, in place of keeping what is inside of it.
            Set it for training: that takes less memory and more time.
    """

    token_embd: Embedding
    remat: bool = False
    _nnx_tabulate_id = NotTabulated()

    if TYPE_CHECKING:  # type checkers do not know the modules that only some models have
        blk: Any  # Layers and NextN blocks, or any modules that are called like them

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any): ...

    def __init__(
        self,
        config: DecoderConfig,
        *,
        dtype=jnp.float32,
        activations: str = DEFAULT.activations,
        backend: str | None = None,
        cache_dtype=None,
        mesh: Mesh | None = None,
        rngs: nnx.Rngs | None,
    ):
        """Makes a decoder.

        Args:
            config: Sizes and options.
            dtype: Of activations. Weights keep their own.
            activations: What products with packed weights turn their inputs into: `quant.matmul`.
            backend: "pallas", "cpp" or "xla" for that one alone, "auto" for the first that can.
                Default: ROCMFORGE_BACKEND, which is read here and never again.
            cache_dtype: Of the keys and values in caches: float32, bfloat16 or float16. Default:
                `dtype`.
            mesh: The devices that share the decoder, with automatic axes. Default: one device.
            rngs: May be None inside `nn.only_shapes`.
        """
        self.config = config
        backend = settings.backend() if backend is None else backend
        self.numerics = Numerics(dtype, activations, backend, cache_dtype, mesh)
        numerics = self.numerics
        for name, module in input_modules(config, numerics, rngs).items():
            setattr(self, name, module)
        layers = [
            Layer(layer, config.width, numerics=numerics, rngs=rngs) for layer in config.layers
        ]
        predictors = [NextN(one, config, numerics=numerics, rngs=rngs) for one in config.nextn]
        self.blk = nnx.List([*layers, *predictors])
        self._make_input_modules(rngs)
        if (name := config.output_norm) is not None:
            sizes = config.width, config.norm_epsilon
            setattr(self, name, make_norm(config.norm_kind, *sizes, name in config.biases))
        self.output = self._make_head(rngs)
        of_head = config.width, config.norm_epsilon, config.biases
        for name, module in config.embedding_head.modules(*of_head, numerics, rngs).items():
            setattr(self, name, module)

    def _make_input_modules(self, rngs) -> None:
        """Makes what computes the layers' own inputs and residual streams, where there are some."""
        config = self.config
        if config.streams > 1:
            made = stream_modules(config.streams, config.width, self.numerics, rngs)
            for name, module in made.items():
                setattr(self, name, module)
        if width := config.input_width:
            sizes = config.vocabulary, config.width, (len(config.layers), width)
            made = embedding_modules(*sizes, config.norm_epsilon, self.numerics, rngs)
            for name, module in made.items():
                setattr(self, name, module)

    def _make_head(self, rngs) -> Linear | None:
        """Makes the head, None where it is the transposed embedding or there is none."""
        config = self.config
        if config.tied or not config.has_head:
            return None
        return Linear(
            config.width,
            config.vocabulary,
            use_bias="output" in config.biases,
            use_output_scale="output" in config.output_scales,
            numerics=self.numerics,
            rngs=rngs,
        )

    def __nnx_repr__(self):
        return short_attributes(self, super().__nnx_repr__())

    def _repr_html_(self) -> str:
        return decoder_html(self)

    @property
    def nextn(self) -> tuple[NextN, ...]:
        """The blocks for multi-token prediction, the last ones of `blk`."""
        return tuple(block for block in self.blk if isinstance(block, NextN))

    def init_cache(self, batch: int, length: int, dtype=None) -> Cache:
        """Makes an empty cache for `batch` sequences of up to `length` tokens.

        It lies where the weights are. dtype: default the decoder's `cache_dtype`. Raises ValueError
        for a model whose tokens see later ones.
        """
        self._require_causal("has no cache")
        dtype = self.numerics.cache_dtype if dtype is None else dtype
        return init_cache(self.config, batch, length, dtype, placement_of(self))

    def __call__(
        self,
        tokens_BT=None,
        cache: Cache | None = None,
        *,
        positions_BT=None,
        lengths_B=None,
        last_only: bool = False,
        inputs_embeds=None,
        mask=None,
        segment_ids=None,
    ):
        """Computes the logits of the next token after each token.

        Args:
            tokens_BT: Integer ids. With a cache they follow what it holds. Tokens that do not fit
                the cache are an error. Under jit, where lengths are unknown, the logits of such a
                row are NaN, or the C++ library raises an error. Ids outside the vocabulary are an
                error; under jit they are clipped to it.
            cache: Default: none, a plain causal pass.
            positions_BT: For rotary and learned embeddings of positions, default: counted from what
                the cache holds. Under jit, learned positions are clipped to those that there are.
            lengths_B: How many of the T tokens of each sequence are real. The first ones are, the
                rest is padding. Default: all.
            last_only: Whether only the logits of the last real token are wanted.
            inputs_embeds: [B, T, D], in place of tokens: rows as `token_embd` gives them.
            mask: Bool [B, T, S], whether a token sees a slot, in place of the causal rule; axes of
                1 broadcast. S is T, or the slots of the cache. Windows and chunks of layers still
                hold. XLA computes it.
            segment_ids: Integers [B, T], for sequences that are packed into a row: tokens see their
                own run of equal ids, and positions count from its start.

        Returns:
            Logits, float32 [B, T, V], or [B, V] with last_only; and the cache with these tokens
            added, or None.

        Raises:
            ValueError: Shapes do not fit, an id is outside the vocabulary, or the model is an
                encoder without a head.
        """
        self._require_head()
        seen = dict(inputs_embeds=inputs_embeds, mask=mask, segment_ids=segment_ids)
        operands = self, tokens_BT, cache, positions_BT, lengths_B, seen
        if (mesh := explicit_mesh(operands)) is not None:

            def function(decoder, *arrays):
                return decoder._logits(*arrays, last_only)

            return _in_auto_axes(function, operands, 1 if last_only else 2, mesh)
        return self._logits(tokens_BT, cache, positions_BT, lengths_B, seen, last_only)

    def _logits(self, tokens_BT, cache, positions_BT, lengths_B, seen, last_only):
        x_BTD, cache, added_B = self._residual(tokens_BT, cache, positions_BT, lengths_B, **seen)
        if last_only:
            x_BTD = jnp.take_along_axis(x_BTD, (added_B - 1)[:, None, None], axis=1)[:, 0]
        return self.head(x_BTD), cache

    def head(self, x):
        """Computes logits, float32 [..., V], of a residual stream [..., D], after any layer.

        It is the last norm and the output projection with its scale and cap. `logits` is without
        the norm.
        """
        self._require_head()
        if (mesh := explicit_mesh((self, x))) is not None:
            result = PartitionSpec(*spec_of(x, x.ndim - 1), None)
            return in_auto_axes(lambda decoder, x: decoder.head(x), (self, x), result, mesh)
        return self._head(x, norm=self.last_norm)

    def hidden(
        self,
        tokens_BT=None,
        cache: Cache | None = None,
        *,
        positions_BT=None,
        lengths_B=None,
        inputs_embeds=None,
        mask=None,
        segment_ids=None,
    ):
        """Computes what the head reads, after the last norm: see `__call__`.

        A model whose tokens see later ones takes no cache: it computes a whole text at once. No
        real token sees padding.

        Returns:
            [B, T, D], of which `logits` makes logits and `nn.pool` vectors of texts; and the cache
            with these tokens added, or None.
        """
        seen = dict(inputs_embeds=inputs_embeds, mask=mask, segment_ids=segment_ids)
        operands = self, tokens_BT, cache, positions_BT, lengths_B, seen
        if (mesh := explicit_mesh(operands)) is not None:
            return _in_auto_axes(Decoder._normed, operands, 2, mesh)
        return self._normed(tokens_BT, cache, positions_BT, lengths_B, seen)

    def _normed(self, tokens_BT, cache, positions_BT, lengths_B, seen):
        x_BTD, cache, _ = self._residual(tokens_BT, cache, positions_BT, lengths_B, **seen)
        norm = self.last_norm
        return (x_BTD if norm is None else norm(x_BTD)), cache

    def embed(self, tokens_BT, lengths_B=None, *, pooling: str | None = None):
        """Computes one vector for each text, float32 [B, width]. It is not normalised.

        Args:
            tokens_BT: Integer ids of whole texts.
            lengths_B: How many of the T tokens of each text are real. The first ones are, the rest
                is padding. Default: all.
            pooling: A kind of `nn.pool`, or "rank" for the scores of a reranker. Default: what the
                file says.

        Returns:
            The vectors, with the model's dense layers applied; [B, T, width] with "none".

        Raises:
            ValueError: There is no default, or shapes do not fit.
        """
        kind = checked_pooling(self.config, pooling)
        operands = self, tokens_BT, lengths_B
        if (mesh := explicit_mesh(operands)) is not None:

            def function(decoder, tokens_BT, lengths_B):
                return decoder.embed(tokens_BT, lengths_B, pooling=kind)

            axes = 2 if kind == "none" else 1
            result = PartitionSpec(*spec_of(tokens_BT, 1), *[None] * axes)
            return in_auto_axes(function, operands, result, mesh)
        states_BTD, _ = self.hidden(tokens_BT, lengths_B=lengths_B)
        return self.config.embedding_head(self, states_BTD, lengths_B, kind)

    def logits(self, hidden, head: Linear | Embedding | None = None):
        """Computes logits, float32 [..., V], of what `hidden` returns, [..., D].

        head: Default the decoder's.
        """
        if head is None:
            self._require_head()
        return self._head(hidden, head)

    def dequantize(self, names: Patterns = True, dtype=None) -> "Decoder":
        """Returns a decoder with dense weights in place of packed ones: see `dequantized`."""
        return dequantized(self, names, dtype)

    def quantize(self, type: Types, names: Patterns = True) -> "Decoder":
        """Returns a decoder with its matrices packed in a type: see `requantized`."""
        return requantized(self, type, names)

    def _require_head(self) -> None:
        if not self.config.has_head:
            raise ValueError(
                f"{self.config.architecture} is an encoder, which has no logits: use hidden or"
                " embed"
            )

    def _require_causal(self, consequence: str) -> None:
        if not self.config.causal:
            raise ValueError(
                f"tokens of {self.config.architecture} see later ones, so it {consequence}: it"
                " computes whole texts at once"
            )

    @property
    def last_norm(self):
        """The norm after the layers, or None."""
        name = self.config.output_norm
        return None if name is None else getattr(self, name)

    @on_its_mesh
    def _residual(
        self, tokens_BT, cache, positions_BT, lengths_B, inputs_embeds, mask, segment_ids
    ):
        """Computes the residual stream after the last layer, the cache, and the tokens added."""
        if cache is not None:
            self._require_causal("takes no cache")
        if (tokens_BT is None) == (inputs_embeds is None):
            raise ValueError("give tokens or inputs_embeds, one of the two")
        if inputs_embeds is not None:
            tokens_BT = embeds_like_tokens(inputs_embeds, self.config)
        arrays = checked_inputs(tokens_BT, cache, positions_BT, lengths_B, self.config.vocabulary)
        tokens_BT, positions_BT, lengths_B = arrays
        if cache is not None and len(cache.layers) != len(self.config.layers):
            raise ValueError(
                f"the cache is of a model with {len(cache.layers)} layers, this one has"
                f" {len(self.config.layers)}: make it with this model's init_cache"
            )
        B, T = tokens_BT.shape
        starts_B = jnp.zeros((B,), jnp.int32) if cache is None else cache.lengths_B
        segments = None if segment_ids is None else segment_places(segment_ids, B, T)
        seen = visible(self.config, mask, segments, cache, starts_B, lengths_B, B, T)
        if positions_BT is None and segments is not None:
            positions_BT = segments[1]
        elif positions_BT is None:
            if cache is None or lengths_B is None:  # padding may go past the last position
                check_length(T, self.config.positions)
            positions_BT = starts_B[:, None] + jnp.arange(T, dtype=jnp.int32)[None]
        check_positions(positions_BT, lengths_B, self.config.positions)
        x_BTD = embed_tokens(self, tokens_BT, positions_BT, inputs_embeds)
        x_BTD = split_batch(x_BTD, self.numerics.mesh)
        tokens = Tokens(positions_BT, starts_B, lengths_B, visible=seen)
        inputs: Any = [None] * len(self.config.layers)
        if width := self.config.input_width:
            inputs = per_layer_inputs(self, tokens_BT, x_BTD, width)
        if self.config.streams > 1:
            x_ABTD, states = self._layers(stacked(self, x_BTD), inputs, tokens, cache)
            x_BTD = merged(self, x_ABTD)
        else:
            x_BTD, states = self._layers(x_BTD, inputs, tokens, cache)
        added_B = jnp.full((B,), T, jnp.int32) if lengths_B is None else lengths_B.astype(jnp.int32)
        if cache is not None:
            x_BTD = with_nan_past_the_cache(x_BTD, cache, starts_B, T)
            cache = Cache(tuple(states), starts_B + added_B, cache.length)
        return x_BTD, cache, added_B

    def _layers(self, x_BTD, inputs, tokens: Tokens, cache: Cache | None):
        """Applies all layers -> the residual stream, and the new states."""
        states: list[Any] = []
        # One table for all layers that rotate alike, and none for those that do not rotate.
        tables: dict[Any, Any] = {None: None}
        old = cache.layers if cache else [None] * len(self.config.layers)
        for i, (layer, config) in enumerate(zip(self.blk, self.config.layers)):
            mixer = config.mixer
            rope: Any = None if mixer is None else mixer.rope
            source = None if mixer is None else mixer.source
            state = old[i] if source is None else states[source]
            if rope not in tables:
                tables[rope] = rope_table(tokens.positions_BT, rope)
            of_layer = dataclasses.replace(tokens, rope=tables[rope], inputs_BTP=inputs[i])
            result = shared_trace(layer, x_BTD, of_layer, state, remat=self.remat)
            if not isinstance(result, tuple) or len(result) != 2:
                raise TypeError(
                    f"blk[{i}], a {type(layer).__name__}, must return the residual stream and the"
                    f" state, got a {type(result).__name__}"
                )
            x_BTD, state = result
            states.append(state)
        return x_BTD, states

    @on_its_mesh
    def _head(self, x, head: Any = None, norm=None):
        config = self.config
        if head is None:
            if x.shape[-1:] != (config.width,):
                raise ValueError(
                    f"the head takes a residual stream [..., {config.width}], got {list(x.shape)}"
                )
            head = _tied(self.token_embd) if self.output is None else self.output
        (logits,) = products(x, [head], norm=norm, dtype=jnp.float32)
        logits = logits if config.logit_scale == 1 else logits * jnp.float32(config.logit_scale)
        cap = config.logit_cap
        return logits if cap is None else jnp.float32(cap) * jnp.tanh(logits / jnp.float32(cap))


def _in_auto_axes(function, operands, axes: int, mesh):
    """Computes a method of a decoder on a mesh with explicit axes; results are split like operands.

    Args:
        function: Returns an array, and the cache.
        operands: Those of `Decoder.hidden`, with the decoder first.
        axes: Axes of the array after the batch.
        mesh: The mesh.
    """
    decoder, tokens_BT, cache, _, _, seen = operands
    if hasattr(decoder, "__captures__"):
        warnings.warn(
            "nnx.capture records nothing inside of a model on a mesh with Explicit axes: make the"
            " mesh with axis_types=(jax.sharding.AxisType.Auto,) * axes",
            stacklevel=4,
        )
    inputs = seen["inputs_embeds"] if tokens_BT is None else tokens_BT
    batch = PartitionSpec(*spec_of(inputs, 1), *[None] * axes)
    caches = jax.tree.map(lambda a: spec_of(a, a.ndim), cache)
    return in_auto_axes(function, operands, (batch, caches), mesh)


def _tied(embedding):
    """Returns the head that is a transposed embedding."""
    if isinstance(embedding, Embedding):
        return embedding
    if not hasattr(embedding, "attend"):
        raise TypeError(
            f"token_embd is a {type(embedding).__name__}, and the head is tied to it: give it a"
            " method attend(x) that returns logits [..., V]"
        )
    return TiedHead(embedding)


def param_count(decoder: Decoder) -> int:
    """Counts the weights of a decoder, quantised or not; a tied head counts once."""
    state = nnx.to_pure_dict(nnx.state(decoder))
    leaves = jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "type_name"))
    return sum(math.prod(leaf.shape) for leaf in leaves)
