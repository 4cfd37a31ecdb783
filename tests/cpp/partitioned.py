"""Runs on eight virtual devices: calls of the C++ library, split over a mesh.

Prints one JSON object: for each case its collectives, how its first result is split, whether its
donated cache was reused, and its relative difference from one device's result.
"""

import collections
import json
import os
import re

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels.attention import AttentionRule
from rocmforge_jax import formats
from rocmforge_jax.backends import Numerics
from rocmforge_jax.nn import (
    Gate,
    KVState,
    Linear,
    RMSNorm,
    RopeConfig,
    attend_to_new,
    only_shapes,
    products,
    rope_table,
)
from rocmforge_jax.quant import QParam, QTensor, matmul

MESH = jax.make_mesh((4, 2), ("data", "model"), (AxisType.Auto,) * 2)
COLLECTIVES = r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
random, cases = np.random.default_rng(0), {}


def draw(*shape):
    return jnp.asarray(random.standard_normal(shape), jnp.float32)


def packed(n, k):
    rows = formats.quantize(np.asarray(draw(n, k)), "Q5_1")
    return QTensor.from_bytes(jnp.asarray(rows), "Q5_1", layout="groups", transposed=True)


def put(tree, *spec):
    """Splits the arrays of a tree by their first axes."""
    return jax.tree.map(lambda a: jax.device_put(a, NamedSharding(MESH, P(*spec))), tree)


def distance(a, b):
    return float(np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(b))


def check(name, function, operands, split, donated=()):
    one, program = jax.jit(function)(*operands), jax.jit(function, donate_argnums=donated)
    compiled = program.lower(*split).compile()
    several = program(*split)
    pairs = zip(jax.tree.leaves(several), jax.tree.leaves(one))
    cases[name] = dict(
        collectives=collections.Counter(re.findall(COLLECTIVES, compiled.as_text())),
        split=list(jax.tree.leaves(several)[0].sharding.spec),
        reused=compiled.memory_analysis().alias_size_in_bytes > 0,
        difference=max(map(distance, *zip(*pairs))),
    )


def check_products():
    x, w = draw(16, 96), packed(56, 96)

    def multiply(x, w):
        return matmul(x, w, backend="cpp")

    check("rows", multiply, (x, w), (put(x, "data"), put(w)))
    check("outputs", multiply, (x, w), (put(x), put(w, "model")))
    check("rows and outputs", multiply, (x, w), (put(x, "data"), put(w, "model")))
    check("inputs", multiply, (x, w), (put(x, None, "model"), put(w)))
    check("outputs over both axes", multiply, (x, w), (put(x), put(w, ("model", "data"))))
    x, w = x[:, :64], packed(57, 64)
    check("rows of an odd weight", multiply, (x, w), (put(x, "data"), put(w)))


def check_fused_products():
    arrays = [(packed(56, 96), draw(56)) for _ in range(2)]
    x, scale = draw(16, 96), draw(96)

    def feed(x, scale, arrays):
        with only_shapes():
            gate, up = (Linear(96, 56, use_bias=True, rngs=None) for _ in range(2))
            norm = RMSNorm(96, epsilon=1e-6)
        for layer, (kernel, bias) in zip((gate, up), arrays):
            layer.kernel, layer.bias = QParam(kernel), nnx.Param(bias)
        norm.scale = nnx.Param(scale)
        return products(x, [Gate(gate, up)], norm=norm)

    split = put(x, "data"), put(scale), put(arrays, "model")
    check("norm and gate", feed, (x, scale, arrays), split)


def check_attention():
    B, T, N, K, H, S = 8, 3, 6, 2, 16, 40
    rope = RopeConfig(H)
    starts = jnp.arange(B, dtype=jnp.int32)
    table = rope_table(starts[:, None] + jnp.arange(T, dtype=jnp.int32)[None], rope)
    rule = AttentionRule(H**-0.5, sinks_N=draw(N))
    q, k, v = draw(B, T, N, H), draw(B, T, K, H), draw(B, T, K, H)
    cache = KVState(draw(B, K, H, S), draw(B, K, S, H))

    def attend(q, k, v, cache, table, starts):
        numerics = Numerics(backend="cpp")
        out, after = attend_to_new(q, k, v, table, rope, cache, starts, rule, numerics=numerics)
        return out.array, after

    operands = q, k, v, cache, table, starts
    for name, batch, heads in (
        ("batch", "data", None),
        ("heads", None, "model"),
        ("batch and heads", "data", "model"),
    ):
        split = *put((q, k, v), batch, None, heads), put(cache, batch, heads)
        check(name, attend, operands, (*split, put(table, batch), put(starts, batch)), donated=3)


check_products()
check_fused_products()
check_attention()
print(json.dumps(cases))
