"""The choice of experts: checks the operands, then runs the kernels."""

import jax

from pallas_kernels.router import kernels
from pallas_kernels.router.blocks import BLOCKS, Blocks
from pallas_kernels.targets import Target, of_family


def route(
    x_TD,
    kernel_DE,
    norm_D,
    *,
    used: int,
    renormalize: bool,
    epsilon: float,
    target: Target,
    blocks: Blocks | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Choose the experts of each token: RMSNorm, a product with the router, softmax, top-k.

    Args:
        x_TD: the tokens, any float dtype.
        kernel_DE: the router's weight, of which products are float32.
        norm_D: the scale of the RMSNorm.
        used: how many experts a token goes through, 1 to E.
        renormalize: whether the weights of the chosen experts are scaled to sum to 1.
        epsilon: the epsilon of the RMSNorm.
        target: what the kernels are compiled for.
        blocks: the sizes of programs; the default depends on the target.

    Returns:
        The weights, float32, and the ids, int32, of the most probable experts, both [T, used], in
        descending order. Experts with equal weights come in the order of their ids.

    Raises:
        ValueError: shapes do not fit together, or `used` is not 1 to E.
    """
    check_operands(x_TD, kernel_DE, norm_D, used)
    blocks = blocks or of_family(BLOCKS, target)
    return kernels.route(x_TD, kernel_DE, norm_D, used, renormalize, epsilon, blocks, target)


def check_operands(x_TD, kernel_DE, norm_D, used: int) -> None:
    """Raises ValueError, with the numbers, unless the shapes fit together."""
    if kernel_DE.shape[0] != x_TD.shape[1] or norm_D.shape != x_TD.shape[1:]:
        raise ValueError(
            f"x has width {x_TD.shape[1]}, the router {kernel_DE.shape[0]}, the norm"
            f" {list(norm_D.shape)}: they must be equal"
        )
    if not 1 <= used <= kernel_DE.shape[1]:
        raise ValueError(f"{used} experts are used, there are {kernel_DE.shape[1]}")
