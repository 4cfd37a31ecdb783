"""Adds partial sums of products, and computes the epilogues."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import triton
from pallas_kernels.qmatmul.epilogue import finished
from pallas_kernels.qmatmul.product import Product
from pallas_kernels.targets import Target, of_family

#: (outputs that a program computes, a power of two, and its warps), by GPU family.
BLOCKS = {"": (512, 4), "interpret": (256, 1)}


def finish(sums, products: list[Product], dtype, target: Target) -> list[jax.Array]:
    """Add the partial sums of products and compute their epilogues, all in one launch.

    Args:
        sums: for each weight of each product, in order: float32 [S, M, N], S parts of the product.
        products: the products. Their `experts` are those of `api.multiply_skinny`.
        dtype: the dtype of the outputs.
        target: the compilation target.

    Returns:
        The output of each product, [M, N].
    """
    (_, M, _), (block, warps) = sums[0].shape, of_family(BLOCKS, target)
    flat, flat_products = [array.reshape(len(array), -1) for array in sums], []
    for product in products:
        residual = None if product.residual is None else product.residual.reshape(-1)
        flat_products.append(
            product._replace(weights=(None,) * len(product.weights), residual=residual)
        )
    sizes = [M * product.rows for product in products]
    programs = [pl.cdiv(size, block) for size in sizes]
    operands, structure = jax.tree.flatten((flat, flat_products))

    def kernel(point, *refs):
        sums_refs, found = jax.tree.unflatten(structure, refs[: len(operands)])
        sums_refs, shares = iter(sums_refs), triton.shares(point[0], programs)
        out_refs = refs[len(operands) :]
        for product, N, ref, (number, wanted) in zip(found, widths, out_refs, shares):
            of_weights = [next(sums_refs) for _ in product.weights]
            run = functools.partial(_block, product, of_weights, ref, number, block, N, M)
            triton.when_all(wanted, run)

    widths = [product.rows for product in products]
    outputs = triton.call(
        kernel,
        [jax.ShapeDtypeStruct((size,), dtype) for size in sizes],
        grid=(sum(programs),),
        target=target,
        warps=warps,
        name="finish",
    )(*operands)
    return [y.reshape(M, N) for y, N in zip(outputs, widths)]


def _block(product, sums_refs, ref, number, block: int, N: int, M: int):
    """Compute block `number` of the outputs of a product, which holds refs of flat arrays."""
    at = number * block + jnp.arange(block, dtype=jnp.int32)
    inside = at < M * N
    totals = []
    for sums_ref in sums_refs:
        parts = [triton.load(sums_ref, (part, at), mask=inside) for part in range(len(sums_ref))]
        totals.append(functools.reduce(jnp.add, parts))
    index = ()
    if product.experts is not None:
        of_expert = M // product.experts.shape[0]
        expert = triton.load(product.experts, (at // N // of_expert,), mask=inside)
        index = (jnp.maximum(expert, 0),)
    factors = []
    for _, scale, bias in product.of_each_weight:
        if scale is not None:
            scale = scale[0] if not index else triton.load(scale, index, mask=inside)
        if bias is not None:
            bias = triton.load(bias, (*index, at % N), mask=inside).astype(jnp.float32)
        factors.append((scale, bias))
    y = finished(totals, factors, product.activation)
    if product.residual is not None:
        y += triton.load(product.residual, (at,), mask=inside).astype(jnp.float32)
    triton.store(ref, (at,), y.astype(ref.dtype), mask=inside)
