"""The router's two kernels: a product with a small dense matrix, then scores and top-k.

Plain XLA needs ten launches, one of them a sort, which slows decoding with small experts. The first
kernel splits the product over experts and over inputs, because it is too small to fill a GPU
otherwise. The second kernel adds the partial sums and chooses.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from pallas_kernels import triton
from pallas_kernels.router.blocks import Blocks
from pallas_kernels.router.routing import SMALLEST_SUM, Routing
from pallas_kernels.targets import Target


def logits(x_TD, kernel_DE, norm_D, blocks: Blocks, target: Target):
    """Compute the logits as partial sums over S parts of the inputs.

    Returns:
        float32 [T, S, E], the partial logits, not yet divided by the root mean square; and
        float32 [T, S], the partial sums of squares.
    """
    (T, D), E = x_TD.shape, kernel_DE.shape[1]
    splits = pl.cdiv(D, blocks.inputs)

    def kernel(point, x_ref, kernel_ref, norm_ref, sums_ref, squares_ref):
        of_experts, t, split = point
        e = of_experts * blocks.experts + jnp.arange(blocks.experts, dtype=jnp.int32)
        d = split * blocks.inputs + jnp.arange(blocks.inputs, dtype=jnp.int32)
        exists = d < D
        weights = triton.load(
            kernel_ref, (d[:, None], e[None]), mask=exists[:, None] & (e < E)[None]
        )
        x, norm = (
            triton.load(ref, index, mask=exists).astype(jnp.float32)
            for ref, index in ((x_ref, (t, d)), (norm_ref, (d,)))
        )
        sums = ((x * norm)[:, None] * weights.astype(jnp.float32)).sum(axis=0)
        triton.store(sums_ref, (t, split, e), sums, mask=e < E)
        squares_ref[t, split] = (x * x).sum()

    shapes = [jax.ShapeDtypeStruct((T, splits, *tail), jnp.float32) for tail in ((E,), ())]
    return triton.call(
        kernel,
        shapes,
        grid=(pl.cdiv(E, blocks.experts), T, splits),
        target=target,
        warps=blocks.threads // target.wave,
        name="route_logits",
    )(x_TD, kernel_DE, norm_D)


def choose(sums_and_squares, biases, width, routing: Routing, epsilon, blocks: Blocks, target):
    """Add the partial sums and choose experts by their scores.

    Args:
        sums_and_squares: the result of `logits`.
        biases: the router's bias and the selection bias, each [E] or None.
        width: the number of inputs of the router.
        routing: the rule for scores and selection, without groups.
        epsilon: the epsilon of the norm.
        blocks: the tile sizes.
        target: the compilation target.

    Returns:
        The weights, float32, and the ids, int32, both [T, used].
    """
    sums, squares = sums_and_squares
    T, splits, E = sums.shape
    padded, padded_splits = pl.next_power_of_2(E), pl.next_power_of_2(splits)
    at_once = min(padded, max(1, blocks.pairs // padded))
    operands, structure = jax.tree.flatten((sums, squares, biases))

    def kernel(point, *refs):
        sums_ref, squares_ref, biases = jax.tree.unflatten(structure, refs[: len(operands)])
        (bias_ref, selection_bias_ref), (weights_ref, ids_ref) = biases, refs[len(operands) :]
        (t,), part = point, jnp.arange(padded_splits, dtype=jnp.int32)
        squares = triton.load(squares_ref, (t, part), mask=part < splits).sum()
        factor = jax.lax.rsqrt(squares / np.float32(width) + np.float32(epsilon))

        def load(ref, experts):
            return triton.load(ref, (experts,), mask=experts < E).astype(jnp.float32)

        def logits_of(experts):
            # Adds one part at a time. In a reduction, the order of additions would depend on the
            # number of experts, but an expert's logit must be bitwise equal among all experts and
            # among a few.
            logits = jnp.zeros(experts.shape, jnp.float32)
            for split in range(splits):
                logits += triton.load(sums_ref, (t, split, experts), mask=experts < E)
            logits = logits * factor
            logits = logits if bias_ref is None else logits + load(bias_ref, experts)
            return jnp.where(experts < E, logits, -jnp.inf)

        def selected_by(experts, of_experts):
            # Without a selection bias, scores and logits have the same order.
            if selection_bias_ref is not None:
                scores = _scores(of_experts, logits, routing.scoring)
                of_experts = scores + load(selection_bias_ref, experts)
                of_experts = jnp.where(experts < E, of_experts, -jnp.inf)
            return _ordered(of_experts)

        def count_above(j, place):
            others = j * at_once + jnp.arange(at_once, dtype=jnp.int32)
            theirs = selected_by(others, logits_of(others))[None]
            own = selected_by(expert, logits)[:, None]
            above = (theirs > own) | (theirs == own) & (others[None] < expert[:, None])
            return place + above.astype(jnp.int32).sum(axis=1)

        expert = jnp.arange(padded, dtype=jnp.int32)
        logits = logits_of(expert)
        place = jax.lax.fori_loop(0, padded // at_once, count_above, jnp.zeros(padded, jnp.int32))
        weights, chosen = _scored(logits, place, routing), place < routing.used
        if routing.renormalize:
            total = jnp.where(chosen, weights, 0).sum()
            # The largest weights of a softmax always sum to more than SMALLEST_SUM.
            if selection_bias_ref is not None or routing.scoring != "softmax":
                total = jnp.where(total < SMALLEST_SUM, np.float32(SMALLEST_SUM), total)
            weights = weights / total
        if routing.scale not in (0, 1):
            weights = weights * np.float32(routing.scale)
        triton.store(weights_ref, (t, place), weights, mask=chosen)
        triton.store(ids_ref, (t, place), expert, mask=chosen)

    run = triton.call(
        kernel,
        [jax.ShapeDtypeStruct((T, routing.used), dtype) for dtype in (jnp.float32, jnp.int32)],
        grid=(T,),
        target=target,
        warps=blocks.threads_choosing // target.wave,
        name="route_choose",
    )
    return tuple(run(*operands))


def _ordered(numbers):
    """Replaces NaN by -inf, so that the places of the experts remain a permutation."""
    return jnp.where(numbers == numbers, numbers, -jnp.inf)


def _scores(logits, all_logits, scoring: str):
    """Turns logits into scores; a softmax is normalised over `all_logits`."""
    if scoring == "sigmoid":
        return 1 / (1 + jnp.exp(-logits))
    if scoring == "sqrt_softplus":
        softplus = jnp.maximum(logits, np.float32(0)) + jnp.log1p(jnp.exp(-jnp.abs(logits)))
        return jnp.sqrt(softplus)
    if scoring == "softmax":
        highest = _ordered(all_logits).max()
        return jnp.exp(logits - highest) / jnp.exp(all_logits - highest).sum()
    return logits


def _scored(logits, place, routing: Routing):
    """Computes the scores of all experts, or a softmax over the chosen experts only."""
    if routing.scoring not in ("softmax", "softmax_of_chosen"):
        return _scores(logits, logits, routing.scoring)
    if routing.scoring == "softmax_of_chosen":
        logits = jnp.where(place < routing.used, logits, -jnp.inf)
    weights = jnp.exp(logits - _ordered(logits).max())
    return weights / weights.sum()
