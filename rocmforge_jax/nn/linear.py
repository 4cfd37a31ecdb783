"""Linear layers, stacks of linear layers and embeddings, with plain or quantised weights."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rocmforge_jax import quant
from rocmforge_jax.backends import DEFAULT, Numerics
from rocmforge_jax.nn.fresh import filled, normal


class Linear(nnx.Module):
    """Computes y = x @ kernel * output_scale + bias, accumulated in float32.

    The initial kernel is drawn from a normal distribution with standard deviation 1/sqrt(in).

    Attributes:
        kernel: (in, out), an nnx.Param or a QParam.
        bias: (out,), or None.
        output_scale: (1,), or None. Files with NVFP4 weights contain such factors.
        numerics: The backend and the activation mode; its dtype is not used.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = False,
        use_output_scale: bool = False,
        dtype=jnp.float32,
        numerics: Numerics = DEFAULT,
        rngs: nnx.Rngs | None,
    ):
        kernel = normal(rngs, (in_features, out_features), in_features**-0.5, dtype)
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(filled((out_features,), 0, dtype)) if use_bias else None
        self.output_scale = _output_scale(1 if use_output_scale else None)
        self.numerics = numerics

    def __call__(self, x, dtype=None):
        """Maps [..., in] to [..., out] in `dtype`, default x's."""
        scale, bias = value_or_none(self.output_scale), value_or_none(self.bias)
        dtype = dtype or x.dtype
        y = quant.matmul(x, self.kernel, dtype=wide(dtype, scale), **how(self.numerics))
        return scaled_and_biased(y, scale, bias, dtype)


class Embedding(nnx.Module):
    """Token embeddings, also used as the output head of a model with tied embeddings.

    Attributes:
        embedding: (V, D), an nnx.Param or a QParam.
        numerics: The backend and the activation mode; its dtype is not used.
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
        """Looks up integer ids, [..., D] in `dtype`. Ids outside the table are clipped."""
        return quant.take_rows(self.embedding, tokens_BT, dtype)

    def attend(self, x, dtype=None):
        """Computes logits x @ embedding.T: maps [..., D] to [..., V] in `dtype`, default x's."""
        by = how(self.numerics)
        return quant.matmul(x, self.embedding, transposed=True, dtype=dtype, **by)


class Experts(nnx.Module):
    """A stack of linear layers of one shape, one per expert.

    Attributes:
        kernel: (E, in, out), an nnx.Param or a QParam.
        bias: (E, out), or None.
        output_scale: (E,), or None: factors of the products, applied before the bias.
        numerics: The backend and the activation mode; its dtype is not used.
    """

    def __init__(
        self,
        experts: int,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = False,
        use_output_scale: bool = False,
        dtype=jnp.float32,
        numerics: Numerics = DEFAULT,
        rngs: nnx.Rngs | None,
    ):
        shape = (experts, in_features, out_features)
        self.kernel = nnx.Param(normal(rngs, shape, in_features**-0.5, dtype))
        self.bias = nnx.Param(filled((experts, out_features), 0, dtype)) if use_bias else None
        self.output_scale = _output_scale(experts if use_output_scale else None)
        self.numerics = numerics

    def __call__(self, x, expert):
        """Maps x [..., in] to [..., out] through one expert, an integer scalar."""
        scale_and_bias = value_or_none(self.output_scale), value_or_none(self.bias)
        return through_expert(x, expert, self.kernel, *scale_and_bias, numerics=self.numerics)


def how(numerics: Numerics) -> dict[str, Any]:
    """Returns the keyword arguments of `quant.matmul` that follow from numerics."""
    return dict(activations=numerics.activations, backend=numerics.backend)


def _output_scale(size: int | None) -> Any:
    """Makes factors of 1, or None marked as data, so that a variable may replace it later."""
    return nnx.data(None if size is None else nnx.Param(filled((size,), 1, jnp.float32)))


def value_or_none(variable: nnx.Variable | None):
    """Returns the value of an optional variable, or None."""
    return None if variable is None else variable.get_value()


def wide(dtype, scale):
    """Returns the dtype of a product: float32 if a scale follows, since float16 may overflow."""
    return dtype if scale is None else jnp.float32


def scaled_and_biased(y, scale, bias, dtype):
    """Returns y * scale + bias in `dtype`.

    Args:
        y: [..., out], of dtype `wide(dtype, scale)`.
        scale: (1,) or None.
        bias: (out,) or None.
        dtype: Dtype of the result.
    """
    leading = (None,) * (y.ndim - 1)
    y = y if scale is None else y * scale.astype(y.dtype)[leading]
    y = y if bias is None else y + bias.astype(y.dtype)[leading]
    return y.astype(dtype)


def through_expert(x, expert, kernel, scale_E, bias_EN, *, numerics: Numerics):
    """Computes x @ kernel[expert] * scale[expert] + bias[expert], [..., out] in x's dtype."""
    y = quant.expert_matmul(x, kernel, expert, dtype=wide(x.dtype, scale_E), **how(numerics))

    def one(stack):
        return jax.lax.dynamic_index_in_dim(stack, expert, keepdims=False)

    scale_1 = None if scale_E is None else one(scale_E)[None]
    bias_N = None if bias_EN is None else one(bias_EN)
    return scaled_and_biased(y, scale_1, bias_N, x.dtype)
