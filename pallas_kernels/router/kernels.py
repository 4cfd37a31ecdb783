"""The router's two kernels: a product with a small dense matrix, then scores and top-k.

Plain XLA needs ten launches, one of them a sort, which slows decoding with small experts. The first
kernel splits the product over experts and over inputs, because it is too small to fill a GPU
otherwise. The second kernel adds the partial sums and chooses the best expert, then the next best,
and so on, with one warp per token.
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
        of_experts, of_tokens, split = point
        e = of_experts * blocks.experts + jnp.arange(blocks.experts, dtype=jnp.int32)
        d = split * blocks.inputs + jnp.arange(blocks.inputs, dtype=jnp.int32)
        exists = d < D
        weights = triton.load(
            kernel_ref, (d[:, None], e[None]), mask=exists[:, None] & (e < E)[None]
        ).astype(jnp.float32)
        norm = triton.load(norm_ref, (d,), mask=exists).astype(jnp.float32)
        if blocks.tokens == 1:
            x = triton.load(x_ref, (of_tokens, d), mask=exists).astype(jnp.float32)
            sums = ((x * norm)[:, None] * weights).sum(axis=0)
            triton.store(sums_ref, (of_tokens, split, e), sums, mask=e < E)
            squares_ref[of_tokens, split] = (x * x).sum()
            return
        t = of_tokens * blocks.tokens + jnp.arange(blocks.tokens, dtype=jnp.int32)
        mask = exists[None] & (t < T)[:, None]
        x = triton.load(x_ref, (t[:, None], d[None]), mask=mask).astype(jnp.float32)
        sums = triton.dot_float32(x * norm[None], weights, target)
        mask = (t < T)[:, None] & (e < E)[None]
        triton.store(sums_ref, (t[:, None], split, e[None]), sums, mask=mask)
        triton.store(squares_ref, (t, split), (x * x).sum(axis=1), mask=t < T)

    shapes = [jax.ShapeDtypeStruct((T, splits, *tail), jnp.float32) for tail in ((E,), ())]
    return triton.call(
        kernel,
        shapes,
        grid=(pl.cdiv(E, blocks.experts), pl.cdiv(T, blocks.tokens), splits),
        target=target,
        warps=blocks.threads // target.wave,
        name="route_logits",
    )(x_TD, kernel_DE, norm_D)


def choose(sums_and_squares, biases, width, routing: Routing, epsilon, target):
    """Add the partial sums and choose experts by their scores.

    Args:
        sums_and_squares: the result of `logits`.
        biases: the router's bias and the selection bias, each [E] or None.
        width: the number of inputs of the router.
        routing: the rule for scores and selection, without groups.
        epsilon: the epsilon of the norm.
        target: the compilation target.

    Returns:
        The weights, float32, and the ids, int32, both [T, used].
    """
    sums, squares = sums_and_squares
    T, splits, E = sums.shape
    padded, padded_splits = pl.next_power_of_2(E), pl.next_power_of_2(splits)
    operands, structure = jax.tree.flatten((sums, squares, biases))

    def kernel(point, *refs):
        sums_ref, squares_ref, biases = jax.tree.unflatten(structure, refs[: len(operands)])
        (bias_ref, selection_bias_ref), (weights_ref, ids_ref) = biases, refs[len(operands) :]
        (t,), part = point, jnp.arange(padded_splits, dtype=jnp.int32)
        squares = triton.load(squares_ref, (t, part), mask=part < splits).sum()
        factor = jax.lax.rsqrt(squares / np.float32(width) + np.float32(epsilon))
        expert = jnp.arange(padded, dtype=jnp.int32)
        exists = expert < E

        def load(ref):
            return triton.load(ref, (expert,), mask=exists).astype(jnp.float32)

        logits = jnp.zeros(padded, jnp.float32)
        for split in range(splits):
            logits += triton.load(sums_ref, (t, split, expert), mask=exists)
        logits = logits * factor
        logits = logits if bias_ref is None else logits + load(bias_ref)
        logits = jnp.where(exists, logits, -jnp.inf)
        # Without a selection bias, scores and logits have the same order.
        ranked_by = logits
        if selection_bias_ref is not None:
            ranked_by = _scores(logits, logits, routing.scoring) + load(selection_bias_ref)
        # Experts without a place yet, as integers that have the order of the numbers.
        keys = jnp.where(exists, _sortable(ranked_by), _TAKEN)

        def choose_next(place, carry):
            keys, places = carry
            best = jnp.where(keys == keys.max(), expert, padded).min()
            taken = expert == best
            return jnp.where(taken, _TAKEN, keys), jnp.where(taken, place, places)

        places = jnp.full(padded, routing.used, jnp.int32)
        _, place = jax.lax.fori_loop(0, routing.used, choose_next, (keys, places))
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
        warps=1,
        name="route_choose",
    )
    return tuple(run(*operands))


#: Less than all results of `_sortable`.
_TAKEN = np.int32(-(2**31))


def _sortable(numbers):
    """Converts float32 to int32 in the same order. NaN becomes -inf, and -0.0 becomes 0.0."""
    numbers = _ordered(numbers) + np.float32(0)
    bits = jax.lax.bitcast_convert_type(numbers, jnp.int32)
    return jnp.where(bits < 0, bits ^ np.int32(2**31 - 1), bits)


def _ordered(numbers):
    """Replaces NaN by -inf."""
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
