"""The activations of the skinny GEMM: normalised, padded, and in the kernel's order of inputs."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from pallas_kernels import triton
from pallas_kernels.packing import GROUP
from pallas_kernels.qmatmul.blocks import MatrixTile
from pallas_kernels.targets import Target, of_family

#: (inputs that a program writes, warps), powers of two, by GPU family.
BLOCKS = {"": (1024, 4), "interpret": (256, 1)}


def in_tiles(
    x_MK,
    tile: MatrixTile,
    steps: int,
    rows: int,
    *,
    norm=None,
    epsilon: float = 0.0,
    experts=None,
    target: Target,
):
    """Bring x [M, K] into the order of the skinny GEMM.

    Args:
        x_MK: any float dtype, K at most steps * tile.groups * 32.
        tile: the tile of the product.
        steps: the number of steps over the inputs of a row.
        rows: the rows of the result, at least M. The others are zeros.
        norm: the scale [K] of an RMSNorm to apply first, or None.
        epsilon: the epsilon of that norm.
        experts: int32 [E], E a divisor of M, or None. If entry i is negative, rows
            i * M / E to (i + 1) * M / E are not written.
        target: the compilation target.

    Returns:
        [rows, steps * tile.groups * 32] in x's dtype. Inputs beyond K are zeros.
    """
    (M, K), width = x_MK.shape, steps * tile.groups * GROUP
    block, warps = of_family(BLOCKS, target)
    operands, structure = jax.tree.flatten((x_MK, norm, experts))

    def kernel(point, *refs):
        x_ref, norm_ref, experts_ref = jax.tree.unflatten(structure, refs[: len(operands)])
        (ref,), row = refs[len(operands) :], point[0]
        position = point[1] * block + jnp.arange(block, dtype=jnp.int32)
        k = _input_at(position, tile)

        def run():
            exists = (k < K) & (row < M)
            x = triton.load(x_ref, (row, k), mask=exists)
            if norm is not None:
                scale = triton.load(norm_ref, (k,), mask=k < K).astype(jnp.float32)
                x = x.astype(jnp.float32) * _inverse_root(x_ref, row, block, epsilon) * scale
            triton.store(ref, (row, position), x.astype(ref.dtype), mask=position < width)

        wanted = [] if experts is None else [experts_ref[row // (M // len(experts))] >= 0]
        triton.when_all(wanted, run)

    return triton.call(
        kernel,
        jax.ShapeDtypeStruct((rows, width), x_MK.dtype),
        grid=(rows, pl.cdiv(width, block)),
        target=target,
        warps=warps,
        name="in_tiles",
    )(*operands)


def _input_at(position, tile: MatrixTile):
    """Return which input is at a position of a row; `skinny_gemm._in_order` orders weights."""
    of_lane, runs = tile.groups // tile.lanes, GROUP // tile.run
    rest, i = position // tile.run, position % tile.run
    rest, lane = rest // tile.lanes, rest % tile.lanes
    rest, run = rest // runs, rest % runs
    step, group = rest // of_lane, rest % of_lane
    k = (((step * tile.lanes + lane) * of_lane + group) * runs + run) * tile.run + i
    return k // 4 * 4 + k % 2 * 2 + k // 2 % 2  # `codes.BYTE_ORDER`


def _inverse_root(x_ref, row, block: int, epsilon: float):
    """Compute 1 / sqrt(mean square + epsilon) of a row of x."""
    M, K = x_ref.shape
    total = jnp.zeros(block, jnp.float32)
    for first in range(0, K, block):
        k = first + jnp.arange(block, dtype=jnp.int32)
        x = triton.load(x_ref, (row, k), mask=(k < K) & (row < M)).astype(jnp.float32)
        total += x * x
    return jax.lax.rsqrt(total.sum() / np.float32(K) + np.float32(epsilon))
