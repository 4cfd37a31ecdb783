"""Makes the submodules of a layer: linear layers, stacks of experts and norms."""

import dataclasses
import math
from typing import Any, Literal

from flax import nnx

from rocmforge_jax.backends import Numerics
from rocmforge_jax.nn import BiasedRMSNorm, Experts, LayerNorm, Linear, RMSNorm

#: Modules outside of the layers -> their names in files, where these contain a dot.
NAMES_IN_FILES = {
    "cls_output": "cls.output",
    "cls_norm": "cls.norm",
    "enc_output_norm": "enc.output_norm",
}


@dataclasses.dataclass(frozen=True)
class Norms:
    """The names in the file of a layer's norms, by their places; None for a place without a norm.

    Families use the same name for different places: `post_attention_norm` follows the mixer in
    Gemma, but precedes the feed-forward in gpt-oss. One norm may be used in two places.

    Attributes:
        epsilon: Epsilon of all norms of the layer.
        kind: "rms", "layer" for layer norms, or "unit_layer" for layer norms without learned
            weights.
        before_mixer: Applied to the residual stream before the mixer.
        after_mixer: Applied to the result of the mixer, before it is added.
        before_feed_forward: Applied to the residual stream before the feed-forward.
        after_feed_forward: Applied to the result of the feed-forward, before it is added.
        after_mixer_sum: Applied to the residual stream after the mixer's result was added.
        after_feed_forward_sum: Applied to the residual stream after the feed-forward's result was
            added.
    """

    epsilon: float
    kind: Literal["rms", "layer", "unit_layer"] = "rms"
    before_mixer: str | None = "attn_norm"
    after_mixer: str | None = None
    before_feed_forward: str | None = "ffn_norm"
    after_feed_forward: str | None = None
    after_mixer_sum: str | None = None
    after_feed_forward_sum: str | None = None

    def __post_init__(self):
        check_epsilon(self.epsilon)

    def without(self, part: str) -> "Norms":
        """Returns the norms without those of a part, "mixer" or "feed_forward"."""
        places = (f"before_{part}", f"after_{part}", f"after_{part}_sum")
        return dataclasses.replace(self, **dict.fromkeys(places, None))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the layer's norms, without duplicates."""
        places = (
            self.before_mixer,
            self.after_mixer,
            self.before_feed_forward,
            self.after_feed_forward,
            self.after_mixer_sum,
            self.after_feed_forward_sum,
        )
        return tuple(dict.fromkeys(name for name in places if name is not None))


@dataclasses.dataclass(frozen=True)
class Make:
    """Makes the submodules of one layer, with biases and output scales where the layer has them.

    Attributes:
        norms: The kind and the epsilon of norms.
        biases: Names of the submodules that have a bias.
        output_scales: Names of the submodules whose product is multiplied by a learned factor.
        width: The width of the residual stream, D.
        numerics: The numerics of the layer.
        rngs: Random numbers for the initial weights; None inside `nn.only_shapes`.
    """

    norms: Norms
    biases: frozenset[str]
    output_scales: frozenset[str]
    width: int
    numerics: Numerics
    rngs: nnx.Rngs | None

    def linear(self, name: str, inputs: int, outputs: int) -> Linear:
        """Makes the linear layer that the file calls `name`."""
        return Linear(inputs, outputs, **self._options(name))

    def experts(self, name: str, count: int, inputs: int, outputs: int) -> Experts:
        """Makes the stack of linear layers that the file calls `name`."""
        return Experts(count, inputs, outputs, **self._options(name))

    def _options(self, name: str) -> dict[str, Any]:
        return dict(
            use_bias=name in self.biases,
            use_output_scale=name in self.output_scales,
            numerics=self.numerics,
            rngs=self.rngs,
        )

    def norm(self, name: str, width: int) -> RMSNorm | LayerNorm:
        """Makes the norm that the file calls `name`."""
        return make_norm(self.norms.kind, width, self.norms.epsilon, name in self.biases)

    def layer_norms(self, name: str, count: int, width: int) -> LayerNorm:
        """Makes layer norms with separate weights for each head, which the file calls `name`."""
        use_bias, groups = name in self.biases, (count,)
        return LayerNorm(width, epsilon=self.norms.epsilon, groups=groups, use_bias=use_bias)


def make_norm(kind: str, width: int, epsilon: float, use_bias: bool) -> RMSNorm | LayerNorm:
    """Makes a norm of a kind: see `Norms`. "unit_layer" has neither scale nor bias."""
    if kind == "unit_layer":
        return LayerNorm(width, epsilon=epsilon, use_scale=False, use_bias=False)
    if kind == "layer":
        return LayerNorm(width, epsilon=epsilon, use_bias=use_bias)
    return (BiasedRMSNorm if use_bias else RMSNorm)(width, epsilon=epsilon)


def check_epsilon(epsilon: float) -> None:
    """Raises ValueError unless the epsilon of a norm is finite and not negative."""
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise ValueError(f"norm_epsilon must be finite and not negative, got {epsilon}")


def check_sizes(**sizes: int) -> None:
    """Raises ValueError if a size is below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def check_width(expected: int, found: int) -> None:
    """Raises ValueError if the width of a part of a layer differs from the model's."""
    if expected != found:
        raise ValueError(f"a layer for width {expected} is in a model of width {found}")
