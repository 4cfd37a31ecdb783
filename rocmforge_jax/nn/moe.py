"""Mixtures of experts: a router chooses a few experts for each token."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.activation_functions import SILU, ActivationFunction
from pallas_kernels.router import Routing
from pallas_kernels.router import reference as router_reference
from pallas_kernels.symbolic_sizes import surely
from rocmforge_jax import quant
from rocmforge_jax.backends import DEFAULT, choose
from rocmforge_jax.nn import moe_cpp, moe_pallas
from rocmforge_jax.nn.expert_stacks import Stacks
from rocmforge_jax.nn.fresh import normal
from rocmforge_jax.nn.linear import Experts, Linear
from rocmforge_jax.nn.lora import LoRALinear
from rocmforge_jax.nn.moe_pallas import MIXTURE, ROUTE


class ScalarGate(nnx.Module):
    """The gate of a shared expert: sigmoid(x @ kernel), one factor per token.

    Attributes:
        kernel: (in,).
    """

    def __init__(self, in_features: int, *, dtype=jnp.float32, rngs: nnx.Rngs | None):
        self.kernel = nnx.Param(normal(rngs, (in_features,), in_features**-0.5, dtype))

    def __call__(self, x):
        """Maps [..., in] to [..., 1] in x's dtype."""
        logit = quant.matmul(x, self.kernel.get_value()[:, None], dtype=jnp.float32)
        return jax.nn.sigmoid(logit).astype(x.dtype)


def route(logits_TE, routing: Routing, selection_bias_E=None):
    """Chooses the experts of each token from the router's logits.

    Args:
        logits_TE: The router's logits.
        routing: How to score and select experts.
        selection_bias_E: Added to the scores for the selection but not for the weights, or None.

    Returns:
        The weights, float32, and the ids, int32, of the top `used` experts, both [T, used], in
        descending order.
    """
    return router_reference.choose(logits_TE, routing, selection_bias_E)


def choose_experts(x_TD, router, routing: Routing, *, selection_bias_E=None, norm=None):
    """Chooses the experts of each token: `route` of the logits router(norm(x)).

    Args:
        x_TD: The tokens.
        router: A Linear layer, or any callable that returns logits [T, E].
        routing: How to score and select experts.
        selection_bias_E: See `route`.
        norm: Applied to x first, or None.

    Returns:
        Weights and ids as `route` returns them, both [T, used].
    """
    backend = getattr(router, "numerics", DEFAULT).backend
    operands = x_TD.shape[0], router, norm, routing
    if choose(ROUTE, operands, backend).name == "pallas":
        return moe_pallas.choose_experts(x_TD, router, norm, routing, selection_bias_E)
    x_TD = x_TD if norm is None else norm(x_TD)
    takes_dtype = type(router) in (Linear, LoRALinear)
    logits_TE = router(x_TD, jnp.float32) if takes_dtype else router(x_TD)
    return route(logits_TE, routing, selection_bias_E)


def mixture(
    x_TD,
    weights,
    experts,
    gate: Experts | None,
    up: Experts,
    down: Experts,
    *,
    norm=None,
    activation: ActivationFunction = SILU,
    weights_first: bool = False,
):
    """Computes the chosen experts' feed-forward of norm(x), and sums it with their weights.

    Args:
        x_TD: The tokens.
        weights: float32 [T, used], from `route`.
        experts: int32 [T, used], from `route`.
        gate: The gate projections. None: there are no gates, or `up` contains them.
        up: The up projections. If they are twice as wide as the input of `down`, their first half
            is the gates.
        down: The down projections.
        norm: Applied to x first, or None.
        activation: The activation function of the gates, or of `up` if there are no gates.
        weights_first: Whether a weight multiplies the input of its expert, not the output.

    Returns:
        The sums [T, D] in x's dtype.

    Raises:
        ValueError: The stacks do not fit together.
    """
    stacks = Stacks(gate, up, down, activation)
    stacks.check()
    if weights_first:
        return _weighted_first(x_TD, weights, experts, stacks, norm)
    T, used = experts.shape
    numerics = getattr(stacks.first[0], "numerics", DEFAULT)
    operands = T * used, x_TD.dtype, stacks, norm
    backend, experts_P = choose(MIXTURE, operands, numerics.backend).name, experts.reshape(-1)
    if backend == "xla":
        return _one_by_one(x_TD, weights, experts, stacks, norm)
    mixed = moe_cpp.mixture if backend == "cpp" else moe_pallas.mixture
    y_TUD = mixed(x_TD, norm, experts_P, stacks, numerics).reshape(T, used, -1)
    if backend == "cpp":  # a reduction by XLA takes 0.2 ms for one token on a CPU, these sums 5 us
        sum_TD = functools.reduce(jnp.add, [weights[:, i, None] * y_TUD[:, i] for i in range(used)])
    else:
        sum_TD = (weights[..., None] * y_TUD).sum(axis=1)
    return sum_TD.astype(x_TD.dtype)


def _weighted_first(x_TD, weights, experts, stacks: Stacks, norm):
    """Computes a mixture with weighted inputs: each pair becomes a token with one expert."""
    (T, used), D = experts.shape, x_TD.shape[1]
    normed_TD = x_TD if norm is None else norm(x_TD)
    x_TUD = weights[..., None] * normed_TD.astype(jnp.float32)[:, None]
    x_PD, one = x_TUD.reshape(T * used, D).astype(x_TD.dtype), jnp.ones((T * used, 1), jnp.float32)
    *layers, activation = stacks
    y_PD = mixture(x_PD, one, experts.reshape(-1, 1), *layers, activation=activation)
    return y_PD.reshape(T, used, -1).astype(jnp.float32).sum(axis=1).astype(x_TD.dtype)


def _one_by_one(x_TD, weights, experts, stacks: Stacks, norm):
    """Loops over the pairs if there are at most E of them, otherwise over the experts.

    A step of a pair reads only its expert. A step of an expert computes all tokens.
    """
    (T, used), E = experts.shape, stacks.up.kernel.shape[0]
    x_TD = x_TD if norm is None else norm(x_TD)

    def forward(x, e):
        hidden = stacks.hidden([layer(x, e) for layer in stacks.first])
        return stacks.down(hidden, e).astype(jnp.float32)

    def pair(sum_TD, i):
        t = i // used
        y_D = forward(jax.lax.dynamic_index_in_dim(x_TD, t, 0), experts.reshape(-1)[i])[0]
        return sum_TD.at[t].add(weights.reshape(-1)[i] * y_D), None

    def expert(sum_TD, e):
        share_T = jnp.where(experts == e, weights, jnp.float32(0)).sum(axis=-1)
        return sum_TD + share_T[:, None] * forward(x_TD, e), None

    step, count = (pair, T * used) if surely(lambda: T * used <= E) else (expert, E)
    total, _ = jax.lax.scan(step, jnp.zeros(x_TD.shape, jnp.float32), jnp.arange(count))
    return total.astype(x_TD.dtype)
