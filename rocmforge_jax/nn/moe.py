"""A mixture of experts: each token goes through the few experts that a router chooses for it."""

import jax
import jax.numpy as jnp
from flax import nnx

from rocmforge_jax import quant
from rocmforge_jax.nn.fresh import normal
from rocmforge_jax.nn.mlp import silu_gate


class Experts(nnx.Module):
    """The same linear layer of every expert. kernel: (E, in, out), an nnx.Param or a QParam."""

    def __init__(self, experts: int, in_features: int, out_features: int, *, dtype=jnp.float32, rngs: nnx.Rngs | None):
        shape = (experts, in_features, out_features)
        self.kernel = nnx.Param(normal(rngs, shape, in_features**-0.5, dtype))

    def __call__(self, x, expert):
        """x [..., in] through one expert, an integer scalar -> [..., out]."""
        return quant.expert_matmul(x, self.kernel, expert)


class ScalarGate(nnx.Module):
    """sigmoid(x @ kernel), one number a token: how much of a shared expert it takes. kernel: (in,)."""

    def __init__(self, in_features: int, *, dtype=jnp.float32, rngs: nnx.Rngs | None):
        self.kernel = nnx.Param(normal(rngs, (in_features,), in_features**-0.5, dtype))

    def __call__(self, x):
        """[..., in] -> [..., 1] in x's dtype."""
        return jax.nn.sigmoid(quant.matmul(x, self.kernel.get_value()[:, None], dtype=jnp.float32)).astype(x.dtype)


def route(logits_TE, used: int, *, renormalize: bool):
    """Softmax over all experts, then the `used` likeliest of each token: (weights float32, ids int32), both [T, used].

    renormalize: the chosen weights are scaled to sum to 1.
    """
    weights, experts = jax.lax.top_k(jax.nn.softmax(logits_TE.astype(jnp.float32), axis=-1), used)
    return weights / weights.sum(axis=-1, keepdims=True) if renormalize else weights, experts


def mixture(x_TD, weights, experts, gate: Experts, up: Experts, down: Experts):
    """The weighted sum of the chosen experts' SwiGLU -> [T, D] in x's dtype. weights, experts: [T, used] of `route`.

    Few tokens: one step a (token, expert) pair, which reads that expert alone. Many: one step an expert, over all tokens.
    """
    (T, used), E = experts.shape, gate.kernel.shape[0]
    forward = lambda x, e: down(silu_gate(gate(x, e), up(x, e)), e).astype(jnp.float32)

    def pair(sum_TD, i):
        t = i // used
        y_D = forward(jax.lax.dynamic_index_in_dim(x_TD, t, 0), experts.reshape(-1)[i])[0]
        return sum_TD.at[t].add(weights.reshape(-1)[i] * y_D), None

    def expert(sum_TD, e):
        share_T = jnp.where(experts == e, weights, jnp.float32(0)).sum(axis=-1)
        return sum_TD + share_T[:, None] * forward(x_TD, e), None

    step, count = (pair, T * used) if T * used <= E else (expert, E)
    total, _ = jax.lax.scan(step, jnp.zeros(x_TD.shape, jnp.float32), jnp.arange(count))
    return total.astype(x_TD.dtype)
