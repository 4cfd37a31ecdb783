"""What the pooled states of a text go through: dense layers, or the classifier of a reranker."""

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
        pooling: Of the states that it reads: "cls", "last" or "mean".
        hidden: Outputs of `cls`, or None without it. Norm and activation come with it.
        activation: After `cls`.
        norm: Whether cls.norm follows.
        outputs: Outputs of cls.output, or None without it.
        softmax: Whether the scores become probabilities.
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
        dense: Names of the dense layers in the file and their outputs, in order.
        classifier: Scores texts, or None.
    """

    dense: tuple[tuple[str, int], ...] = ()
    classifier: Classifier | None = None

    @property
    def width(self) -> int | None:
        """The outputs of the last dense layer, or None without one."""
        return self.dense[-1][1] if self.dense else None

    @property
    def names(self) -> frozenset[str]:
        """The names of its modules in the file."""
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
        """Makes the submodules of a decoder.

        Args:
            width: Of pooled states, D.
            epsilon: Of the classifier's norm.
            biases: Names of the tensors that have a bias.
            numerics: How the decoder computes.
            rngs: Draw fresh weights; None inside `nn.only_shapes`.
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
        assert scores is not None  # `checked_pooling` has refused
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
