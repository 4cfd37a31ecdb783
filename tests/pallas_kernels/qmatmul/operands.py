"""Packed operands of products."""

import jax

from pallas_kernels.qmatmul import Product, Weight
from pallas_kernels.samples import random_planes
from rocmforge_jax import formats
from rocmforge_jax.quant import word_packed


def stack_of(matrix, name, experts, rows, blocks):
    """A stack of matrices of a type, and its values [E, N, K]."""
    weight, values = matrix(name, experts * rows, blocks)
    planes = {
        plane: array.reshape(experts, rows, *array.shape[1:])
        for plane, array in weight.planes.items()
    }
    return Weight(planes, weight.packing), values.reshape(experts, rows, -1)


def abstract_weight(name, rows, inputs, experts=None):
    """A weight of a type whose planes are shapes, or a stack of `experts` of them."""
    packing = word_packed.packing(formats.get(name))
    planes = jax.eval_shape(lambda: random_planes(jax.random.key(0), packing, rows, inputs // 32))
    if experts is not None:
        planes = {
            plane: jax.ShapeDtypeStruct((experts, *array.shape), array.dtype)
            for plane, array in planes.items()
        }
    return Weight(planes, packing)


def abstract_product(name, rows, inputs, pairs=None):
    """A product with such a weight, or with 8 experts for `pairs` rows of the output."""
    if pairs is None:
        return Product((abstract_weight(name, rows, inputs),))
    experts = jax.ShapeDtypeStruct((pairs,), "int32")
    return Product((abstract_weight(name, rows, inputs, 8),), experts=experts)
