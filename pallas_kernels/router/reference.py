"""The router in plain jnp: the reference for the kernels, and their fallback."""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.router.routing import SMALLEST_SUM, Routing


def route(
    x_TD,
    kernel_DE,
    norm_D,
    routing: Routing,
    *,
    bias_E=None,
    selection_bias_E=None,
    epsilon: float,
):
    """Compute the result of `api.route`: weights float32 and ids int32, both [T, used]."""
    x_TD = x_TD.astype(jnp.float32)
    mean_square = jnp.mean(x_TD * x_TD, axis=1, keepdims=True)
    x_TD = x_TD * jax.lax.rsqrt(mean_square + epsilon) * norm_D.astype(jnp.float32)[None]
    logits_TE = jnp.dot(x_TD, kernel_DE.astype(jnp.float32), precision="highest")
    if bias_E is not None:
        logits_TE = logits_TE + bias_E.astype(jnp.float32)[None]
    return choose(logits_TE, routing, selection_bias_E)


def choose(logits_TE, routing: Routing, selection_bias_E=None):
    """Choose the experts of each token from the router's logits.

    Args:
        logits_TE: any float dtype.
        routing: the rule for scores and selection.
        selection_bias_E: added to the scores for the selection only, or None.

    Returns:
        The weights, float32, and the ids, int32, both [T, used], in descending order of the scores,
        including the selection bias.

    Raises:
        ValueError: `routing` does not fit the number of experts.
    """
    routing.check(logits_TE.shape[-1])
    logits_TE = logits_TE.astype(jnp.float32)
    scores_TE = _scores(logits_TE, routing.scoring)
    by_TE = _selected_by(logits_TE, scores_TE, routing, selection_bias_E)
    best_TU, ids_TU = jax.lax.top_k(by_TE, routing.used)
    chosen_TU = best_TU if by_TE is scores_TE else jnp.take_along_axis(scores_TE, ids_TU, axis=-1)
    return _weights(chosen_TU, routing), ids_TU


def _scores(logits_TE, scoring: str):
    if scoring == "softmax":
        return jax.nn.softmax(logits_TE, axis=-1)
    if scoring == "sigmoid":
        return jax.nn.sigmoid(logits_TE)
    if scoring == "sqrt_softplus":
        return jnp.sqrt(jax.nn.softplus(logits_TE))
    return logits_TE


def _selected_by(logits_TE, scores_TE, routing, selection_bias_E):
    """Returns the numbers [T, E] by which experts are ranked."""
    if selection_bias_E is not None:
        by_TE = scores_TE + selection_bias_E.astype(jnp.float32)[None]
    elif routing.scoring == "sigmoid" and routing.groups == 1:
        # Logits have the order of scores, without the ties of scores that are rounded to 1.
        by_TE = logits_TE
    else:
        by_TE = scores_TE
    return by_TE if routing.groups == 1 else _in_the_best_groups(by_TE, routing)


def _in_the_best_groups(by_TE, routing):
    """Sets the numbers of experts outside of the best groups to -inf."""
    T = by_TE.shape[0]
    by_TGE = by_TE.reshape(T, routing.groups, -1)
    of_group_TG = jax.lax.top_k(by_TGE, 2)[0].sum(axis=-1)
    _, kept = jax.lax.top_k(of_group_TG, routing.groups_used)
    is_kept_TG = (kept[:, :, None] == jnp.arange(routing.groups)[None, None]).any(axis=1)
    return jnp.where(is_kept_TG[..., None], by_TGE, -jnp.inf).reshape(by_TE.shape)


def _weights(chosen_TU, routing):
    """Turns the scores of the chosen experts into their weights."""
    if routing.scoring == "softmax_of_chosen":
        chosen_TU = jax.nn.softmax(chosen_TU, axis=-1)
    if routing.renormalize:
        total_T1 = chosen_TU.sum(axis=-1, keepdims=True)
        chosen_TU = chosen_TU / jnp.maximum(total_T1, np.float32(SMALLEST_SUM))
    return chosen_TU if routing.scale in (0, 1) else chosen_TU * np.float32(routing.scale)
