"""Linear layers, stacks of them and embeddings, whose weights may be quantised."""

import jax.numpy as jnp
from flax import nnx

from rocmforge_jax import quant
from rocmforge_jax.backends import DEFAULT, Numerics
from rocmforge_jax.nn.fresh import filled, normal


class Linear(nnx.Module):
    """Computes y = x @ kernel + bias, accumulated in float32.

    A fresh kernel is drawn from a normal distribution of standard deviation 1/sqrt(in).

    Attributes:
        kernel: (in, out), an nnx.Param or a QParam.
        bias: (out,), or None.
        numerics: The backend and the mode of activations; its dtype is not used.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = False,
        dtype=jnp.float32,
        numerics: Numerics = DEFAULT,
        rngs: nnx.Rngs | None,
    ):
        kernel = normal(rngs, (in_features, out_features), in_features**-0.5, dtype)
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(filled((out_features,), 0, dtype)) if use_bias else None
        self.numerics = numerics

    def __call__(self, x, dtype=None):
        """Maps [..., in] to [..., out] in `dtype`, default x's."""
        y = quant.matmul(x, self.kernel, dtype=dtype, **how(self.numerics))
        if self.bias is None:
            return y
        return y + self.bias.get_value().astype(y.dtype)[(None,) * (y.ndim - 1)]


class Embedding(nnx.Module):
    """Token embeddings (V, D), which are also the output head of a tied model.

    Attributes:
        embedding: (V, D), an nnx.Param or a QParam.
        numerics: The backend and the mode of activations; its dtype is not used.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        *,
        dtype=jnp.float32,
        numerics: Numerics = DEFAULT,
        rngs: nnx.Rngs | None,
    ):
        self.embedding = nnx.Param(normal(rngs, (vocabulary, width), 0.02, dtype))
        self.numerics = numerics

    def __call__(self, tokens_BT, dtype=jnp.float32):
        """Maps integer ids to [..., D] in `dtype`. Ids outside the table are clipped."""
        return quant.take_rows(self.embedding, tokens_BT, dtype)

    def attend(self, x, dtype=None):
        """Maps [..., D] to [..., V] in `dtype`, default x's: x @ embedding.T."""
        table = self.embedding.get_value().T
        return quant.matmul(x, table, dtype=dtype, **how(self.numerics))


class Experts(nnx.Module):
    """The same linear layer of every expert.

    Attributes:
        kernel: (E, in, out), an nnx.Param or a QParam.
        numerics: The backend and the mode of activations; its dtype is not used.
    """

    def __init__(
        self,
        experts: int,
        in_features: int,
        out_features: int,
        *,
        dtype=jnp.float32,
        numerics: Numerics = DEFAULT,
        rngs: nnx.Rngs | None,
    ):
        shape = (experts, in_features, out_features)
        self.kernel = nnx.Param(normal(rngs, shape, in_features**-0.5, dtype))
        self.numerics = numerics

    def __call__(self, x, expert):
        """Maps x [..., in] to [..., out] through one expert, an integer scalar."""
        return quant.expert_matmul(x, self.kernel, expert, **how(self.numerics))


def how(numerics: Numerics) -> dict[str, str]:
    """Returns the keyword arguments of `quant.matmul` that numerics decide."""
    return dict(activations=numerics.activations, backend=numerics.backend)
