"""Kernels of the choice of experts: a product with a small dense matrix, then softmax and top-k.

Plain XLA takes ten launches, one of them a sort, and decoding a mixture with small experts waits
for them. The product is split over experts and over inputs, because it is too small to fill a GPU
otherwise. The second kernel adds the partial sums.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from pallas_kernels import triton
from pallas_kernels.router.blocks import Blocks
from pallas_kernels.targets import Target


def route(x_TD, kernel_DE, norm_D, used, renormalize, epsilon, blocks: Blocks, target: Target):
    """Run both kernels -> weights float32 and ids int32, both [T, used]."""
    sums, squares = _logits(x_TD, kernel_DE, norm_D, blocks, target)
    return _choose(sums, squares, x_TD.shape[1], used, renormalize, epsilon, blocks, target)


def _logits(x_TD, kernel_DE, norm_D, blocks, target):
    """Partial sums over S parts of the inputs.

    Returns:
        float32 [T, S, E], parts of the logits before they are divided by the root mean square, and
        [T, S], sums of squares.
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


def _choose(sums, squares, width, used, renormalize, epsilon, blocks, target):
    T, splits, E = sums.shape
    padded, padded_splits = pl.next_power_of_2(E), pl.next_power_of_2(splits)
    at_once = min(padded, max(1, blocks.pairs // padded))

    def kernel(point, sums_ref, squares_ref, weights_ref, ids_ref):
        (t,), split = point, jnp.arange(padded_splits, dtype=jnp.int32)
        squares = triton.load(squares_ref, (t, split), mask=split < splits).sum()
        factor = jax.lax.rsqrt(squares / np.float32(width) + np.float32(epsilon))

        def logits_of(experts):
            mask = (split < splits)[:, None] & (experts < E)[None]
            logits = (
                triton.load(sums_ref, (t, split[:, None], experts[None]), mask=mask).sum(axis=0)
                * factor
            )
            return jnp.where(experts < E, logits, -jnp.inf)

        def ordered(logits):
            # NaN counts as the smallest, so that places stay a permutation.
            return jnp.where(logits == logits, logits, -jnp.inf)

        def count_above(j, place):
            others = j * at_once + jnp.arange(at_once, dtype=jnp.int32)
            theirs, own = ordered(logits_of(others))[None], ordered(logits)[:, None]
            above = (theirs > own) | (theirs == own) & (others[None] < expert[:, None])
            return place + above.astype(jnp.int32).sum(axis=1)

        expert = jnp.arange(padded, dtype=jnp.int32)
        logits = logits_of(expert)
        place = jax.lax.fori_loop(0, padded // at_once, count_above, jnp.zeros(padded, jnp.int32))
        weights = jnp.exp(logits - ordered(logits).max())
        weights = weights / weights.sum()
        chosen = place < used
        if renormalize:
            weights = weights / jnp.where(chosen, weights, 0).sum()
        triton.store(weights_ref, (t, place), weights, mask=chosen)
        triton.store(ids_ref, (t, place), expert, mask=chosen)

    shapes = [jax.ShapeDtypeStruct((T, used), dtype) for dtype in (jnp.float32, jnp.int32)]
    run = triton.call(
        kernel,
        shapes,
        grid=(T,),
        target=target,
        warps=blocks.threads // target.wave,
        name="route_choose",
    )
    return tuple(run(sums, squares))
