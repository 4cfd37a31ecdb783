"""Products with a matrix in "columns" layout, in plain XLA for CPUs.

The output axis is minor, and every loop is vectorised over the outputs. For few rows one pass over
the packed blocks turns codes to float in registers. For many rows a tile of the weight at a time is
dequantised into the cache and multiplied by XLA's dense dot. Neither holds the dense weight.
"""

import functools
import math

import jax
import jax.numpy as jnp

from pallas_kernels.symbolic_sizes import surely
from rocmforge_jax.quant.unroll import rows_of, unroll

#: Rows of x up to which the fused loop is used. It decodes the weight once per row of x, the tiles
#: once for all: on two cores of Zen 5 tiles win from 2 rows (Q4_0, Q5_1) or 4 (Q8_0) on.
FUSED_ROWS = 2
#: Weights of a matrix from which on the fused loop is used: a step over a smaller matrix has too
#: little work for two cores.
FUSED_WEIGHTS = 2_000_000
#: Elements of a block up to which its program is written out: 256 take seconds to compile for each
#: product of a model.
FUSED_BLOCK = 32
#: Weights that one step of the fused loop handles per element of a block: enough work for every
#: thread.
STEP_WIDTH = 65536
#: Bytes of a dequantised tile: it should stay in the caches.
TILE_BYTES = 4 << 20


@jax.jit
def matmul(x_MK, w):
    """Multiplies float32 [M, K] by the QTensor w, in the layout "columns", -> float32 [M, N].

    It is jitted so that each shape is traced once: the layers of a model have few different ones.
    """
    if (
        surely(lambda: x_MK.shape[0] <= FUSED_ROWS)
        and math.prod(w.stored_shape) >= FUSED_WEIGHTS
        and w.format.block <= FUSED_BLOCK
    ):
        try:
            return _fused(x_MK, w)
        except NotImplementedError:
            pass  # for example a table look-up in the block's program: tiles can do anything
    return _tiled(x_MK, w)


def _parts(blocks: int, width: int) -> int:
    """The number of parts, side by side, of the input axis.

    It is the divisor of `blocks` that brings the width of a step nearest STEP_WIDTH.
    """
    wanted = math.log(STEP_WIDTH / width)
    divisors = [d for d in range(1, blocks + 1) if blocks % d == 0]
    return min(divisors, key=lambda d: abs(math.log(d) - wanted))


def _fused(x_MK, w):
    fmt, (N, K) = w.format, w.stored_shape
    if fmt.affine is None:
        raise NotImplementedError(f"{fmt} is not a scaled grid of small integers")
    M, parts = x_MK.shape[0], _parts(K // fmt.block, N)
    planes = {name: plane.reshape(parts, -1, *plane.shape[1:]) for name, plane in w.planes.items()}
    x = x_MK.reshape(M, parts, -1, fmt.block)

    def step(b, sums):
        block = {
            name: rows_of(jax.lax.dynamic_index_in_dim(plane, b, 1, keepdims=False))
            for name, plane in planes.items()
        }
        return sums + _block_product(
            jax.lax.dynamic_index_in_dim(x, b, 2, keepdims=False), unroll(fmt.affine, block)
        )

    sums = jax.lax.fori_loop(0, x.shape[2], step, jnp.zeros((M, parts, N), jnp.float32))
    return sums.sum(axis=1)


def _block_product(x, affine):
    """Multiplies x [M, parts, block] by one block of each column -> [M, parts, N].

    Each group takes one multiplication by its scale.
    """

    def column(values):
        return values[:, :, None]

    scales = affine.scale.reshape(-1)
    groups = jnp.split(x, len(scales), axis=2)
    total = None
    for g, (scale, codes) in enumerate(zip(scales, affine.codes.reshape(len(scales), -1))):
        dot = sum(
            code.astype(jnp.float32)[None] * column(groups[g][:, :, j])
            for j, code in enumerate(codes)
        )
        term = dot * scale[None]
        if affine.bias is not None:
            term = term + affine.bias.reshape(-1)[g][None] * column(groups[g].sum(axis=2))
        total = term if total is None else total + term
    return total


def decode(planes, fmt):
    """Planes [K/block, *field, N] -> values [K, N] in float32."""
    values = _by_block(lambda block: fmt.values(**block))(planes)
    blocks, block, N = values.shape
    return values.reshape(blocks * block, N)


def _by_block(program):
    """Vectorise a program on one block's fields over planes [K/block, *field, N]."""
    return jax.vmap(jax.vmap(program, in_axes=-1, out_axes=-1))


def _tiles(N: int, K: int) -> tuple[int, int]:
    """The width of a tile and the number of tiles.

    There are at least four, so that a tile is never nearly the whole weight.
    """
    width = min(max(TILE_BYTES // (4 * K) // 64 * 64, 64), -(-N // 4))
    return width, -(-N // width)


@functools.cache
def _has_groups(fmt) -> bool:
    """Whether a block has several scales."""
    if fmt.affine is None:
        return False
    block = {field.name: jax.ShapeDtypeStruct(field.shape, field.dtype) for field in fmt.fields}
    return jax.eval_shape(lambda block: fmt.affine(**block).scale, block).size > 1


def _tile_decoder(w, width):
    """A function from a tile's first column to its values [K, width].

    The scales of a block with groups are computed before the loop over tiles (1/16 or less of the
    dense weight). Inside the loop, XLA computes them again for every element of the group: 0.6
    instead of 7 Gweights/s for Q4_K.
    """
    fmt, K = w.format, w.stored_shape[-1]

    def columns(start):
        return lambda plane: jax.lax.dynamic_slice_in_dim(plane, start, width, -1)

    if not _has_groups(fmt):
        return lambda start: decode(jax.tree.map(columns(start), w.planes), fmt)
    scale, bias = _by_block(lambda block: fmt.affine(**block)[1:])(w.planes)
    codes = _by_block(lambda block: fmt.affine(**block).codes)

    def tile(start):
        take = columns(start)

        def grouped(a):
            return take(a)[:, :, None]

        blocks, groups = scale.shape[:2]
        values = codes(jax.tree.map(take, w.planes)).reshape(blocks, groups, -1, width).astype(
            jnp.float32
        ) * grouped(scale)
        return (values if bias is None else values + grouped(bias)).reshape(K, width)

    return tile


def _tiled(x_MK, w):
    N, K = w.stored_shape
    width, count = _tiles(N, K)
    tile = _tile_decoder(w, width)

    def step(i, out):
        # The last tile overlaps its neighbour: the same values are written twice.
        start = jnp.minimum(i * width, N - width)
        part = jnp.dot(x_MK, tile(start), precision="highest")
        return jax.lax.dynamic_update_slice_in_dim(out, part, start, 1)

    return jax.lax.fori_loop(0, count, step, jnp.zeros((x_MK.shape[0], N), jnp.float32))


@jax.jit
def matmul_transposed(g_MN, w):
    """Multiplies float32 [M, N] by the stored [N, K] itself -> float32 [M, K].

    This is the gradient of `matmul`, and the product with an embedding.
    """
    N, K = w.stored_shape
    width, count = _tiles(N, K)
    tile = _tile_decoder(w, width)

    def step(i, out):
        start = jnp.minimum(i * width, N - width)
        fresh = jnp.arange(width) + start >= i * width  # columns of the overlap count once
        part = jax.lax.dynamic_slice_in_dim(g_MN, start, width, 1) * fresh[None].astype(jnp.float32)
        return out + jnp.dot(part, tile(start).T, precision="highest")

    return jax.lax.fori_loop(0, count, step, jnp.zeros((g_MN.shape[0], K), jnp.float32))
