"""Root mean square normalisation."""

import jax
import jax.numpy as jnp
from flax import nnx

from rocmforge_jax.nn.fresh import filled


def rms_norm(x, scale, epsilon: float):
    """Computes x / sqrt(mean(x^2) + epsilon) * scale over the last axis.

    It is computed in float32 and returned in x's dtype. scale: [x.shape[-1]].
    """
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + epsilon)
    return (normed * scale.astype(jnp.float32)[(None,) * (x.ndim - 1)]).astype(x.dtype)


class RMSNorm(nnx.Module):
    """`rms_norm` with a learned scale, named as in Flax; a GGUF file calls it `weight`."""

    def __init__(
        self, width: int, *, epsilon: float, dtype=jnp.float32, rngs: nnx.Rngs | None = None
    ):
        self.scale = nnx.Param(filled((width,), 1, dtype))
        self.epsilon = epsilon

    def __call__(self, x):
        """Norms x [..., width]."""
        return rms_norm(x, self.scale.get_value(), self.epsilon)
