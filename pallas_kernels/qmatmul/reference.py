"""Products with packed weights in plain jnp: the reference for the kernels, and their fallback."""

import jax
import jax.numpy as jnp

from pallas_kernels.dequantize import reference as dequantize_reference
from pallas_kernels.qmatmul.product import Product, Weight


def multiply(
    x_MK, products: list[Product], *, dtype=jnp.float32, norm=None, epsilon: float = 0.0
) -> list[jax.Array]:
    """Multiply x with dequantised weights, in float32.

    Args:
        x_MK: any float dtype, any number of rows.
        products: the products to compute.
        dtype: the dtype of the outputs.
        norm: the scale [K] of an RMSNorm to apply to x first, or None.
        epsilon: the epsilon of that norm.

    Returns:
        The output of each product, [M, N], or [P, N] with experts.
    """
    x_MK = x_MK.astype(jnp.float32)
    if norm is not None:
        mean_square = jnp.mean(x_MK * x_MK, axis=1, keepdims=True)
        x_MK = x_MK * jax.lax.rsqrt(mean_square + epsilon) * norm.astype(jnp.float32)[None]
    return [_product(x_MK, product).astype(dtype) for product in products]


def _product(x_MK, product: Product):
    product.check_epilogue()
    outputs = []
    for weight, scale, bias in product.of_each_weight:
        y = _times(x_MK, weight, product.experts)
        y = y if scale is None else y * _of_rows(scale[:, None], product.experts)
        outputs.append(y if bias is None else y + _of_rows(bias, product.experts))
    y = outputs[0] if product.activation is None else product.activation(*outputs)
    return y if product.residual is None else y + product.residual.astype(jnp.float32)


def _of_rows(array, experts):
    """Bring a scale or a bias, [N] or [E, N], into a shape that broadcasts with the output."""
    array = array.astype(jnp.float32)
    return jnp.atleast_2d(array) if experts is None else array[experts]


def _times(x_MK, weight: Weight, experts):
    """Multiply x with a matrix -> [M, N], or rows of x with their experts' matrices -> [P, N]."""
    if experts is None:
        return _dot(x_MK, weight.planes, weight.packing)
    x_PK = jnp.repeat(x_MK, experts.shape[0] // x_MK.shape[0], axis=0)

    def one_pair(pair):
        x_K, expert = pair
        planes = {name: plane[expert] for name, plane in weight.planes.items()}
        return _dot(x_K[None], planes, weight.packing)[0]

    # One pair after the other, so that only one dense matrix exists at a time.
    return jax.lax.map(one_pair, (x_PK, experts))


def _dot(x_MK, planes, packing):
    dense_NK = dequantize_reference.dequantize(planes, packing)
    return jnp.dot(x_MK, dense_NK.T, precision="highest")
