"""Runs on eight virtual devices: the demo model on meshes, with explicit and automatic axes.

Prints one JSON object: the collectives of each case, how its result is split, and its relative
difference from one device's result.
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

import rocmforge_jax as rf

COLLECTIVES = r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
lm, cases = rf.load("demo", activations="float", progress=False), {}
graphdef, params, packed = nnx.split(lm.model, nnx.Param, ...)
tokens = jnp.asarray(np.arange(24).reshape(8, 3), jnp.int32)


def forward(params, packed, tokens):
    return nnx.merge(graphdef, params, packed)(tokens)[0]


def gradient(params, packed, tokens):
    return jax.grad(lambda params: (forward(params, packed, tokens) ** 2).mean())(params)


def distance(a, b):
    return float(np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(b))


for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((8,), ("data",), (kind,))
    whole = NamedSharding(mesh, P())
    split = NamedSharding(mesh, P("data"))
    inputs = jax.device_put((params, packed), whole)
    for function in (forward, gradient):
        operands = *inputs, jax.device_put(tokens, split)
        program = jax.jit(function)
        found, one = program(*operands), program(params, packed, tokens)
        text = program.lower(*operands).compile().as_text()
        pairs = zip(jax.tree.leaves(found), jax.tree.leaves(one))
        cases[f"{function.__name__}, {kind.name}"] = dict(
            collectives=collections.Counter(re.findall(COLLECTIVES, text)),
            split=jax.tree.leaves(found)[0].sharding.spec[:1],
            difference=max(distance(*pair) for pair in pairs),
        )
text = lm.generate("ROMEO:", max_tokens=4, temperature=0).text
lm.model = nnx.merge(graphdef, *inputs)
cases["generates"] = lm.generate("ROMEO:", max_tokens=4, temperature=0).text == text
print(json.dumps(cases))
