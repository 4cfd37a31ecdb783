"""The choice of experts in plain jnp: the truth for the kernels, and their stand-in."""

import jax
import jax.numpy as jnp


def route(x_TD, kernel_DE, norm_D, *, used: int, renormalize: bool, epsilon: float):
    """Compute what `api.route` computes -> weights float32 and ids int32, both [T, used]."""
    x_TD = x_TD.astype(jnp.float32)
    mean_square = jnp.mean(x_TD * x_TD, axis=1, keepdims=True)
    x_TD = x_TD * jax.lax.rsqrt(mean_square + epsilon) * norm_D.astype(jnp.float32)[None]
    logits_TE = jnp.dot(x_TD, kernel_DE.astype(jnp.float32), precision="highest")
    return choose(logits_TE, used, renormalize=renormalize)


def choose(logits_TE, used: int, *, renormalize: bool):
    """Softmax over all experts, then the `used` most probable of each token."""
    weights, ids = jax.lax.top_k(jax.nn.softmax(logits_TE.astype(jnp.float32), axis=-1), used)
    return weights / weights.sum(axis=-1, keepdims=True) if renormalize else weights, ids
