"""The layers after pooling: dense layers, or the classifier of a reranker."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from rocmforge_jax.backends import Numerics
from rocmforge_jax.models.make import NAMES_IN_FILES, make_norm
from rocmforge_jax.nn import Linear, pool, products


@dataclasses.dataclass(frozen=True)
class Classifier:
    """Scores a text, for pooling "rank": output(norm(activation(cls(pooled)))).

    Attributes:
        pooling: How the states of the text are pooled: "cls", "last" or "mean".
        hidden: Outputs of `cls`, or None without it. Without `cls`, there is no activation.
        activation: The activation function after `cls`.
        norm: Whether the activation is followed by cls.norm.
        outputs: Outputs of cls.output, or None without it.
        softmax: Whether a softmax turns the scores into probabilities.
    """

    pooling: Literal["cls", "last", "mean"] = "cls"
    hidden: int | None = None
    activation: Literal["tanh", "gelu"] = "tanh"
    norm: bool = False
    outputs: int | None = None
    softmax: bool = False


@dataclasses.dataclass(frozen=True)
class EmbeddingHead:
    """The layers after pooling.

    Attributes:
        dense: The dense layers in order: the name in the file and the number of outputs.
        classifier: The classifier that scores texts, or None.
    """

    dense: tuple[tuple[str, int], ...] = ()
    classifier: Classifier | None = None

    @property
    def width(self) -> int | None:
        """The number of outputs of the last dense layer, or None without dense layers."""
        return self.dense[-1][1] if self.dense else None

    @property
    def names(self) -> frozenset[str]:
        """The names of the head's modules in the file."""
        names, scores = {name for name, _ in self.dense}, self.classifier
        if scores is not None:
            there = {
                "cls": scores.hidden is not None,
                "cls.norm": scores.norm,
                "cls.output": scores.outputs is not None,
            }
            names |= {name for name, made in there.items() if made}
        return frozenset(names)

    def modules(
        self,
        width: int,
        epsilon: float,
        biases: frozenset[str],
        numerics: Numerics,
        rngs: nnx.Rngs | None,
    ) -> Mapping[str, nnx.Module]:
        """Makes the head's modules, which become submodules of a decoder.

        Args:
            width: The width of pooled states, D.
            epsilon: Epsilon of the classifier's norm.
            biases: Names in the file of the modules that have a bias.
            numerics: The decoder's numerics.
            rngs: Random numbers for the initial weights; None inside `nn.only_shapes`.

        Returns:
            Name of a submodule -> the module.
        """
        made: dict[str, nnx.Module] = {}

        def linear(name: str, inputs: int, outputs: int) -> None:
            bias = NAMES_IN_FILES.get(name, name) in biases
            made[name] = Linear(inputs, outputs, use_bias=bias, numerics=numerics, rngs=rngs)

        inputs = width
        for name, outputs in self.dense:
            linear(name, inputs, outputs)
            inputs = outputs
        if (scores := self.classifier) is not None:
            if scores.hidden is not None:
                linear("cls", width, scores.hidden)
            inputs = scores.hidden or width
            if scores.norm:
                made["cls_norm"] = make_norm("layer", inputs, epsilon, False)
            if scores.outputs is not None:
                linear("cls_output", inputs, scores.outputs)
        return made

    def __call__(self, decoder, states_BTD, lengths_B, pooling: str):
        """Pools states and applies the head: see `Decoder.embed`."""
        if pooling == "rank":
            return self._scores(decoder, states_BTD, lengths_B)
        pooled = pool(states_BTD, lengths_B, pooling)
        for name, _ in self.dense:
            pooled = _through(getattr(decoder, name), pooled)
        return pooled

    def _scores(self, decoder, states_BTD, lengths_B):
        scores = self.classifier
        assert scores is not None  # `checked_pooling` raises an error otherwise
        pooled_BD = pool(states_BTD, lengths_B, scores.pooling)
        if scores.hidden is not None:
            pooled_BD = _through(decoder.cls, pooled_BD)
            activate: Any = jnp.tanh if scores.activation == "tanh" else jax.nn.gelu
            pooled_BD = activate(pooled_BD)
        if scores.norm:
            pooled_BD = decoder.cls_norm(pooled_BD)
        if scores.outputs is not None:
            pooled_BD = _through(decoder.cls_output, pooled_BD)
        return jax.nn.softmax(pooled_BD, axis=-1) if scores.softmax else pooled_BD


def _through(layer: Linear, x):
    """Applies a linear layer, in float32."""
    return products(x, [layer], dtype=jnp.float32)[0]
