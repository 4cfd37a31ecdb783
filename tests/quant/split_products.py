"""Runs on eight virtual devices: products with matrices that are split, in every layout.

Prints a JSON object: the name of each case -> relative differences from one device of a product, of
the gradient of its input, and of rows; and the collectives of the product.
"""

import collections
import dataclasses
import json
import os
import re

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding

from rocmforge_jax import formats, quant
from rocmforge_jax.quant.split import Split

COLLECTIVES = r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
#: Outputs, and inputs in two blocks of 256 or in sixteen of 32.
N, K = 24, 512
CASES = [
    ("Q5_1", "columns"),
    ("Q4_0", "groups"),
    ("Q4_K", "groups"),
    ("Q6_K", "rows"),
    ("IQ2_XS", "columns"),
]
mesh = jax.make_mesh((4, 2), ("data", "model"), (AxisType.Auto,) * 2)
random = np.random.default_rng(0)


def matrix(type_name, layout):
    """Blocks of random bytes, whose scales are finite."""
    fmt = formats.get(type_name)
    blocks = random.integers(0, 256, (N, K // fmt.block, fmt.block_bytes), dtype=np.uint8)
    at = 0
    for field in fmt.fields:
        if np.dtype(field.dtype) == np.float16:
            scales = random.normal(0, 0.02, (N, K // fmt.block, field.nbytes // 2))
            bits = scales.astype(np.float16).view(np.uint8)
            blocks[..., at : at + field.nbytes] = bits.reshape(*blocks.shape[:2], -1)
        at += field.nbytes
    rows = jnp.asarray(blocks.reshape(N, -1))
    return quant.QTensor.from_bytes(rows, fmt, layout=layout, transposed=True)


def placed(w, **axes):
    split = Split(mesh, **axes)
    specs = split.specs(w.planes, w.format, w.layout)
    planes = {
        name: jax.device_put(plane, NamedSharding(mesh, specs[name]))
        for name, plane in w.planes.items()
    }
    return dataclasses.replace(w, planes=planes, split=split)


def distance(found, expected):
    found, expected = np.float64(found), np.float64(expected)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@jax.jit
def product(x, w):
    return quant.matmul(x, w, activations="float")


@jax.jit
def gradient(x, w):
    return jax.grad(lambda x: (product(x, w) ** 2).sum())(x)


@jax.jit
def mapped(x, w):
    return jax.vmap(lambda x: quant.matmul(x, w, activations="float"))(x)


@jax.jit
def rows(ids, w):
    return quant.take_rows(w.T, ids)


found = {}
x = jnp.asarray(random.normal(0, 1, (4, 3, K)), jnp.float32)
ids = jnp.asarray([[0, 23, 11], [12, 99, 5], [-1, 3, 13], [7, 8, 9]], jnp.int32)
for type_name, layout in CASES:
    w = matrix(type_name, layout)
    for axes in ({"rows": "model"}, {"columns": "model"}, {}):
        split = placed(w, **axes)
        program = product.lower(x, split).compile().as_text()
        found[f"{type_name}, {layout}, {''.join(axes) or 'whole'}"] = dict(
            differences=[
                distance(function(operand, split), function(operand, w))
                for function, operand in (
                    (product, x),
                    (gradient, x),
                    (mapped, x),
                    (rows, ids),
                )
            ],
            dense=distance(quant.dequantize(split), quant.dequantize(w)),
            collectives=collections.Counter(re.findall(COLLECTIVES, program)),
        )
print(json.dumps(found))
