"""A mixture of experts: each token goes through the few experts that a router chooses for it."""

import jax
import jax.numpy as jnp
from flax import nnx

from rocmforge_jax import quant
from rocmforge_jax.backends import DEFAULT, choose
from rocmforge_jax.nn import moe_pallas
from rocmforge_jax.nn.fresh import normal
from rocmforge_jax.nn.linear import Experts, Linear
from rocmforge_jax.nn.mlp import silu_gate
from rocmforge_jax.nn.moe_pallas import MIXTURE, ROUTE


class ScalarGate(nnx.Module):
    """Computes sigmoid(x @ kernel): how much of a shared expert each token takes. kernel: (in,)."""

    def __init__(self, in_features: int, *, dtype=jnp.float32, rngs: nnx.Rngs | None):
        self.kernel = nnx.Param(normal(rngs, (in_features,), in_features**-0.5, dtype))

    def __call__(self, x):
        """Maps [..., in] to [..., 1] in x's dtype."""
        logit = quant.matmul(x, self.kernel.get_value()[:, None], dtype=jnp.float32)
        return jax.nn.sigmoid(logit).astype(x.dtype)


def route(logits_TE, used: int, *, renormalize: bool):
    """Returns the top `used` experts of each token: (weights float32, ids int32), both [T, used].

    The weights are a softmax over all experts; renormalize scales the chosen ones to sum to 1.
    """
    scores = jax.nn.softmax(logits_TE.astype(jnp.float32), axis=-1)
    weights, experts = jax.lax.top_k(scores, used)
    return weights / weights.sum(axis=-1, keepdims=True) if renormalize else weights, experts


def choose_experts(x_TD, router, used: int, *, renormalize: bool, norm=None):
    """Returns `route` of router(norm(x)): weights and ids, both [T, used].

    Args:
        x_TD: The tokens.
        router: A Linear layer or any other callable that gives logits [T, E].
        used: Experts of a token.
        renormalize: Whether the weights of a token sum to 1.
        norm: Applied to x first, or None.
    """
    backend = getattr(router, "numerics", DEFAULT).backend
    if choose(ROUTE, (x_TD.shape[0], router, norm), backend).name == "pallas":
        return moe_pallas.choose_experts(x_TD, router, norm, used, renormalize)
    x_TD = x_TD if norm is None else norm(x_TD)
    logits_TE = router(x_TD, jnp.float32) if type(router) is Linear else router(x_TD)
    return route(logits_TE, used, renormalize=renormalize)


def mixture(x_TD, weights, experts, gate: Experts, up: Experts, down: Experts, *, norm=None):
    """Computes the weighted sum of the chosen experts' SwiGLU of norm(x) -> [T, D] in x's dtype.

    Args:
        x_TD: The tokens.
        weights: float32 [T, used], of `route`.
        experts: int32 [T, used], of `route`.
        gate: The gates of all experts.
        up: The linear parts that they multiply.
        down: The products that follow.
        norm: Applied to x first, or None.
    """
    (T, used), E = experts.shape, gate.kernel.shape[0]
    few = T * used <= E
    numerics = getattr(gate, "numerics", DEFAULT)
    operands = few, x_TD.dtype, (gate, up, down), norm
    if choose(MIXTURE, operands, numerics.backend).name != "pallas":
        return _one_by_one(x_TD, weights, experts, gate, up, down, norm)
    y_PD = moe_pallas.mixture(few, x_TD, norm, experts.reshape(-1), (gate, up, down), numerics)
    return (weights[..., None] * y_PD.reshape(T, used, -1)).sum(axis=1).astype(x_TD.dtype)


def _one_by_one(x_TD, weights, experts, gate, up, down, norm):
    """Takes a step a pair, which reads that expert alone, or a step an expert, over all tokens."""
    (T, used), E = experts.shape, gate.kernel.shape[0]
    x_TD = x_TD if norm is None else norm(x_TD)

    def forward(x, e):
        return down(silu_gate(gate(x, e), up(x, e)), e).astype(jnp.float32)

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
