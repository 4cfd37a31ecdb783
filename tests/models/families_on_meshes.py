"""Runs on eight virtual devices: models of the files named on the command line, on a mesh and not.

Prints a JSON object: the name of each file -> relative differences of the logits of prompts, of the
logits of a token after them, and of what the tests of a file want to know beside.
"""

import json
import os
import sys
import warnings
from pathlib import Path

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rocmforge_jax.gguf import open_gguf
from rocmforge_jax.models import load_decoder

BATCH, TOKENS = 4, 21
mesh = jax.make_mesh((4, 2), ("data", "model"))


def logits_of(decoder, tokens_BT):
    """The logits of all tokens but the last, and of the last through a cache."""
    graphdef, state = nnx.split(decoder)

    @jax.jit
    def step(state, tokens_BT, cache):
        return nnx.merge(graphdef, state)(tokens_BT, cache)

    if not decoder.config.causal:
        run = jax.jit(lambda state: nnx.merge(graphdef, state).hidden(tokens_BT)[0])
        return [np.asarray(run(state))]
    first, cache = step(state, tokens_BT[:, :-1], decoder.init_cache(BATCH, 32))
    last, _ = step(state, tokens_BT[:, -1:], cache)
    return [np.asarray(first), np.asarray(last)]


def distance(found, expected):
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


warnings.simplefilter("ignore")
for path in sys.argv[1:]:
    gguf = open_gguf(path)
    options = dict(dtype=jnp.float32, activations="float")
    one = load_decoder(gguf, **options)
    several = load_decoder(gguf, mesh=mesh, **options)
    ids = np.random.default_rng(0).integers(0, one.config.vocabulary, (BATCH, TOKENS))
    tokens_BT = jnp.asarray(ids, jnp.int32)
    pairs = zip(logits_of(several, tokens_BT), logits_of(one, tokens_BT))
    split = {
        str(leaf.sharding.spec)
        for leaf in jax.tree.leaves(nnx.state(several))
        if not leaf.sharding.is_fully_replicated
    }
    found = dict(differences=[distance(*pair) for pair in pairs], split=len(split))
    print(json.dumps({Path(path).stem: found}), flush=True)
