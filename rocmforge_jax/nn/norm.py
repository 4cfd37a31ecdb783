"""RMS, layer and L2 normalisation."""

import jax
import jax.numpy as jnp
from flax import nnx

from rocmforge_jax.nn.fresh import filled


def rms_norm(x, scale, epsilon: float):
    """Computes x / sqrt(mean(x^2) + epsilon) * scale over the last axis.

    Args:
        x: [..., width].
        scale: The shape of the last axis of x, or of several last axes. None: 1.
        epsilon: Added to the mean of the squares.

    Returns:
        An array of x's shape and dtype, computed in float32.
    """
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + epsilon)
    return (normed if scale is None else normed * _along_last(scale, x)).astype(x.dtype)


def layer_norm(x, scale, bias, epsilon: float):
    """Computes (x - mean(x)) / sqrt(variance(x) + epsilon) * scale + bias over the last axis.

    Args:
        x: [..., width].
        scale: The shape of the last axis of x, or of several last axes. None: 1.
        bias: Like `scale`. None: 0.
        epsilon: Added to the variance.

    Returns:
        An array of x's shape and dtype, computed in float32.
    """
    x32 = x.astype(jnp.float32)
    # The mean is subtracted first: mean(x^2) - mean(x)^2 would suffer from cancellation.
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + epsilon)
    normed = normed if scale is None else normed * _along_last(scale, x)
    return (normed if bias is None else normed + _along_last(bias, x)).astype(x.dtype)


def l2_norm(x, epsilon: float):
    """Computes x / sqrt(sum(x^2) + epsilon) over the last axis, in float32; keeps x's dtype."""
    x32 = x.astype(jnp.float32)
    squares = jnp.sum(x32 * x32, axis=-1, keepdims=True)
    return (x32 * jax.lax.rsqrt(squares + epsilon)).astype(x.dtype)


def _along_last(array, x):
    """Converts an array to float32 and adds leading axes, so that it broadcasts with x."""
    return array.astype(jnp.float32)[(None,) * (x.ndim - array.ndim)]


class RMSNorm(nnx.Module):
    """`rms_norm` with a learned scale, which GGUF files call `weight`.

    Attributes:
        scale: (width,), or None without a learned scale.
        epsilon: Added to the mean of the squares.
    """

    def __init__(
        self,
        width: int,
        *,
        epsilon: float,
        use_scale: bool = True,
        dtype=jnp.float32,
        rngs: nnx.Rngs | None = None,
    ):
        self.scale = nnx.Param(filled((width,), 1, dtype)) if use_scale else None
        self.epsilon = epsilon

    def __call__(self, x):
        """Normalises x [..., width] over the last axis."""
        scale = None if self.scale is None else self.scale.get_value()
        return rms_norm(x, scale, self.epsilon)


class BiasedRMSNorm(RMSNorm):
    """`RMSNorm` with a learned bias, which is added to the result.

    Attributes:
        bias: (width,).
    """

    def __init__(self, width: int, *, epsilon: float, dtype=jnp.float32):
        super().__init__(width, epsilon=epsilon, dtype=dtype)
        self.bias = nnx.Param(filled((width,), 0, dtype))

    def __call__(self, x):
        """Normalises x [..., width] over the last axis."""
        normed = super().__call__(x.astype(jnp.float32))
        return (normed + _along_last(self.bias.get_value(), x)).astype(x.dtype)


class GroupedRMSNorm(nnx.Module):
    """`rms_norm` over each of several groups of elements, with a learned scale.

    Attributes:
        scale: (groups, width / groups).
        epsilon: Added to the mean of the squares of a group.
    """

    def __init__(self, groups: int, width: int, *, epsilon: float, dtype=jnp.float32):
        self.scale = nnx.Param(filled((groups, width // groups), 1, dtype))
        self.epsilon = epsilon

    def __call__(self, x):
        """Normalises each group of x [..., width]; a group is contiguous."""
        scale = self.scale.get_value()
        grouped = x.reshape(*x.shape[:-1], *scale.shape)
        return rms_norm(grouped, scale, self.epsilon).reshape(x.shape)


class LayerNorm(nnx.Module):
    """`layer_norm` with a learned scale and bias, named as in Flax.

    Attributes:
        scale: (*groups, width), or None. GGUF files call it `weight`.
        bias: (*groups, width), or None.
        epsilon: Added to the variance.
    """

    def __init__(
        self,
        width: int,
        *,
        epsilon: float,
        groups: tuple[int, ...] = (),
        use_scale: bool = True,
        use_bias: bool = True,
        dtype=jnp.float32,
        rngs: nnx.Rngs | None = None,
    ):
        shape = (*groups, width)
        self.scale = nnx.Param(filled(shape, 1, dtype)) if use_scale else None
        self.bias = nnx.Param(filled(shape, 0, dtype)) if use_bias else None
        self.epsilon = epsilon

    def __call__(self, x):
        """Normalises x [..., *groups, width] over the last axis."""
        scale = None if self.scale is None else self.scale.get_value()
        bias = None if self.bias is None else self.bias.get_value()
        return layer_norm(x, scale, bias, self.epsilon)


def scaled_norm(norm: RMSNorm, factor: float) -> RMSNorm:
    """Returns a copy of `norm` whose scale, and so its output, is multiplied by a factor."""
    assert norm.scale is not None
    scale = norm.scale.get_value().astype(jnp.float32)
    made = RMSNorm(scale.shape[0], epsilon=norm.epsilon)
    made.scale = nnx.Param(scale * jnp.float32(factor))
    return made


def is_fusable(norm) -> bool:
    """Returns whether kernels support a norm: exactly RMSNorm, no subclass, with a scale."""
    return type(norm) is RMSNorm and norm.scale is not None


def require_fusable(norm) -> None:
    """Raises NotImplementedError if kernels do not support the norm. None is supported."""
    if norm is not None and not is_fusable(norm):
        scale = " without a scale" if type(norm) is RMSNorm else ""
        raise NotImplementedError(f"the norm is a {type(norm).__name__}{scale}")
