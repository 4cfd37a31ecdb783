"""Linear layers and embeddings whose weights may be quantised."""

import jax.numpy as jnp
from flax import nnx

from rocmforge_jax import quant
from rocmforge_jax.nn.fresh import filled, normal


class Linear(nnx.Module):
    """y = x @ kernel + bias.

    kernel: (in, out), an nnx.Param or a QParam; bias: (out,) or None. A fresh kernel is drawn from
    a normal distribution of standard deviation 1/sqrt(in). Products are accumulated in float32.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = False,
        dtype=jnp.float32,
        rngs: nnx.Rngs | None,
    ):
        self.kernel = nnx.Param(normal(rngs, (in_features, out_features), in_features**-0.5, dtype))
        self.bias = nnx.Param(filled((out_features,), 0, dtype)) if use_bias else None

    def __call__(self, x, dtype=None, activations: str = quant.DEFAULT_MODE):
        """[..., in] -> [..., out] in `dtype` (default x's). activations: as for `quant.matmul`."""
        y = quant.matmul(x, self.kernel, dtype=dtype, activations=activations)
        return (
            y
            if self.bias is None
            else y + self.bias.get_value().astype(y.dtype)[(None,) * (y.ndim - 1)]
        )


class Embedding(nnx.Module):
    """Token embeddings (V, D), an nnx.Param or a QParam.

    `attend` uses them as the output head of a tied model.
    """

    def __init__(self, vocabulary: int, width: int, *, dtype=jnp.float32, rngs: nnx.Rngs | None):
        self.embedding = nnx.Param(normal(rngs, (vocabulary, width), 0.02, dtype))

    def __call__(self, tokens_BT, dtype=jnp.float32):
        """Integer ids -> [..., D] in `dtype`. Ids outside the table are clipped."""
        return quant.take_rows(self.embedding, tokens_BT, dtype)

    def attend(self, x, dtype=None):
        """[..., D] -> [..., V] in `dtype` (default x's): the product with the transposed table."""
        return quant.matmul(x, self.embedding.get_value().T, dtype=dtype)
