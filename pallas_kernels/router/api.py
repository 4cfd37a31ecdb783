"""The router of a mixture of experts: checks the operands, then runs the kernels."""

import jax

from pallas_kernels.router import kernels
from pallas_kernels.router.blocks import Blocks, blocks_of
from pallas_kernels.router.routing import Routing
from pallas_kernels.targets import Target


def route(
    x_TD,
    kernel_DE,
    norm_D,
    routing: Routing,
    *,
    bias_E=None,
    selection_bias_E=None,
    epsilon: float,
    target: Target,
    blocks: Blocks | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Choose the experts of each token: RMSNorm, product with the router, scores, top-k.

    Args:
        x_TD: the tokens, any float dtype.
        kernel_DE: the router's weight; the product is computed in float32.
        norm_D: the scale of the RMSNorm.
        routing: the rule for scores and selection.
        bias_E: the router's bias, or None.
        selection_bias_E: added to the scores for the selection only, or None.
        epsilon: the epsilon of the RMSNorm.
        target: the compilation target.
        blocks: the tile sizes of the product; the default depends on the target.

    Returns:
        The weights (float32) and ids (int32) of the chosen experts, both [T, used]. They are in
        descending order of the scores, including the selection bias. Experts with equal scores are
        in the order of their ids.

    Raises:
        NotImplementedError: the routing divides the experts into groups.
        ValueError: shapes do not fit together, or `routing` does not fit the experts.
    """
    check_operands(x_TD, kernel_DE, norm_D, routing, bias_E, selection_bias_E)
    if routing.groups > 1:
        raise NotImplementedError(f"the experts are in {routing.groups} groups")
    blocks = blocks or blocks_of(x_TD.shape[0], kernel_DE.shape[1], target)
    logits = kernels.logits(x_TD, kernel_DE, norm_D, blocks, target)
    biases = bias_E, selection_bias_E
    return kernels.choose(logits, biases, x_TD.shape[1], routing, epsilon, target)


def check_operands(x_TD, kernel_DE, norm_D, routing, bias_E=None, selection_bias_E=None) -> None:
    """Raises ValueError, with the numbers, unless the operands fit together."""
    if kernel_DE.shape[0] != x_TD.shape[1] or norm_D.shape != x_TD.shape[1:]:
        raise ValueError(
            f"x has width {x_TD.shape[1]}, the router {kernel_DE.shape[0]}, the norm"
            f" {list(norm_D.shape)}: they must be equal"
        )
    E = kernel_DE.shape[1]
    routing.check(E)
    for name, bias in (("bias", bias_E), ("selection bias", selection_bias_E)):
        if bias is not None and bias.shape != (E,):
            raise ValueError(f"the {name} has shape {list(bias.shape)}: expected [{E}]")
