"""One layer of a decoder: a mixer and a feed-forward, each added to the residual stream."""

import operator
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import nnx

from rocmforge_jax.backends import Numerics
from rocmforge_jax.models.altup import AltUp
from rocmforge_jax.models.config import LayerConfig
from rocmforge_jax.models.make import Make
from rocmforge_jax.models.overview import NotTabulated
from rocmforge_jax.models.parts import Tokens
from rocmforge_jax.nn import State, Vector, products


class Layer(nnx.Module):
    """One layer of a decoder, which owns the weights of its mixer, feed-forward and norms.

    Submodules have the names of the file's tensors. For example, `blk.0.attn_q.weight` is
    `decoder.blk[0].attn_q.kernel`.

    Attributes:
        config: The mixer, the feed-forward and the norms. They compute with this layer's weights.
        numerics: The backend, the dtype and the activation mode.
    """

    _nnx_tabulate_id = NotTabulated()

    if TYPE_CHECKING:  # submodules are set dynamically, so type checkers cannot see them

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any): ...

    def __init__(
        self, config: LayerConfig, width: int, *, numerics: Numerics, rngs: nnx.Rngs | None
    ):
        self.config, self.numerics = config, numerics
        make = Make(config.norms, config.biases, config.output_scales, width, numerics, rngs)
        parts = config.mixer, config.feed_forward, config.per_layer_input
        for part in (*parts, config.laurel, config.altup):
            for name, module in ({} if part is None else part.modules(make)).items():
                setattr(self, name, module)
        for name in config.norms.names:
            setattr(self, name, make.norm(name, width))
        if config.output_factor:
            self.layer_output_scale = Vector(1, initial=1)

    def __nnx_repr__(self):
        # The decoder's config already contains the configs of all layers.
        return (part for part in super().__nnx_repr__() if getattr(part, "key", None) != "config")

    def __call__(self, x_BTD, tokens: Tokens, state: State | None = None):
        """Computes the layer.

        Args:
            x_BTD: The residual stream; with `altup`, all streams [A, B, T, D].
            tokens: Positions and lengths of the T tokens.
            state: The state after the earlier tokens. None: the tokens see only one another.

        Returns:
            The new residual stream or streams, and the state with the T tokens, or None.
        """
        if self.config.altup is not None:
            return self._streams(self.config.altup, x_BTD, tokens, state)
        x_BTD, state = self._parts(x_BTD, tokens, state)
        if self.config.per_layer_input is not None:
            x_BTD = x_BTD + self.config.per_layer_input(self, x_BTD, tokens.inputs_BTP)
        if self.config.output_factor:
            factor = self.layer_output_scale.kernel.get_value().astype(jnp.float32)
            x_BTD = (x_BTD.astype(jnp.float32) * factor[None, None]).astype(x_BTD.dtype)
        return x_BTD, state

    def _streams(self, altup: AltUp, x_ABTD, tokens: Tokens, state: State | None):
        """Updates several residual streams by AltUp: computes the first, corrects the others."""
        predicted_ABTD = altup.predict(self, x_ABTD)
        computed_BTD, state = self._parts(predicted_ABTD[0].astype(x_ABTD.dtype), tokens, state)
        new_ABTD = altup.correct(self, predicted_ABTD, computed_BTD)
        if self.config.per_layer_input is not None:
            read_BTD = altup.scaled(self, new_ABTD[0]).astype(x_ABTD.dtype)
            more_BTD = self.config.per_layer_input(self, read_BTD, tokens.inputs_BTP)
            new_ABTD = new_ABTD.at[1:].add(more_BTD.astype(jnp.float32)[None])
        return new_ABTD.astype(x_ABTD.dtype), state

    def _parts(self, x_BTD, tokens: Tokens, state: State | None):
        """Adds the results of mixer and feed-forward; returns the residual stream and the state."""
        mixer, feed_forward, norms = self.config.mixer, self.config.feed_forward, self.config.norms
        before_BTD, laurel = x_BTD, self.config.laurel
        if mixer is not None:
            y, state = mixer(self, x_BTD, submodule(self, norms.before_mixer), tokens, state)
            x_BTD = self._add(x_BTD, y, mixer.output, norms.after_mixer, norms.after_mixer_sum)
        if laurel is not None:
            y = laurel(self, before_BTD, submodule(self, norms.before_mixer))
            x_BTD = (x_BTD + y) * 2**-0.5
        if feed_forward is not None:
            read_BTD = before_BTD if self.config.parallel else x_BTD
            y = feed_forward(self, read_BTD, submodule(self, norms.before_feed_forward))
            after = norms.after_feed_forward, norms.after_feed_forward_sum
            x_BTD = self._add(x_BTD, y, feed_forward.output, *after)
        return x_BTD, state

    def _add(self, x_BTD, y, output: str | None, norm_name: str | None, sum_norm: str | None):
        """Projects and normalises y and adds it to the residual stream.

        Args:
            x_BTD: The residual stream.
            y: The result of a mixer or a feed-forward.
            output: The name of the projection of y, or None if y needs no projection.
            norm_name: The name of the norm after the projection, or None.
            sum_norm: The name of the norm of the sum, or None.
        """
        x_BTD = self._sum(x_BTD, y, output, norm_name)
        norm = submodule(self, sum_norm)
        return x_BTD if norm is None else norm(x_BTD)

    def _sum(self, x_BTD, y, output: str | None, norm_name: str | None):
        projection, norm = submodule(self, output), submodule(self, norm_name)
        scale = self.config.residual_scale
        # If nothing comes between product and sum, the kernel adds x in its epilogue.
        if projection is not None and norm is None and scale == 1:
            return products(y, [projection], residual=x_BTD)[0]
        y = y if projection is None else products(y, [projection])[0]
        y = y if norm is None else norm(y)
        return x_BTD + (y if scale == 1 else y * scale)


def submodule(layer: nnx.Module, name: str | None) -> Any:
    """Returns the submodule with a name, which may contain dots, or None for None.

    It is no method, because `nnx.capture` records what methods return.
    """
    return None if name is None else operator.attrgetter(name)(layer)
