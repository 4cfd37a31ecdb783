# %% [markdown]
# # Several devices on a laptop
#
# A CPU can look like eight devices to JAX, which is enough to write and test programs for eight GPUs. This notebook loads the demo model onto a mesh of them, looks at where its
# weights are, compares its logits with those of a single device, and counts what the devices exchange.

# %%
import os

# Before JAX starts. On a machine with GPUs, leave these two lines out.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import rocmforge_jax as rf

mesh = jax.make_mesh((4, 2), ("data", "model"), (jax.sharding.AxisType.Auto,) * 2)
print(len(jax.devices()), "devices:", dict(mesh.shape))

# %% [markdown]
# ## Load
#
# The axis "data" splits batches, the axis "model" splits weights, heads and caches. `activations="float"` computes products in float32, so that results can be compared to the last digits.

# %%
options = dict(activations="float", progress=False)
one = rf.load("demo", **options)
several = rf.load("demo", mesh=mesh, **options)
several

# %% [markdown]
# ## Where the planes are
#
# Weights stay packed. Queries, keys, values, gate and up are split by their outputs, and what follows them, output and down, by their inputs, between blocks. So each device computes its heads and hidden
# units alone, and then the devices' sums are added.

# %%
layer = several.model.blk[0]
for name in ("attn_q", "attn_k", "attn_output", "ffn_up", "ffn_down"):
    weight = getattr(layer, name).kernel.get_value()
    name_of_plane, plane = next(iter(weight.planes.items()))
    shard = plane.addressable_shards[0].data
    print(
        f"{name:12}{weight.type_name:6}{weight.shape}",
        f"plane {name_of_plane}: {plane.shape}, {shard.shape} a device",
    )


def bytes_on(model, device):
    shards = (s for a in jax.tree.leaves(nnx.state(model)) for s in a.addressable_shards)
    return sum(shard.data.nbytes for shard in shards if shard.device == device)


whole, share = bytes_on(one.model, jax.devices()[0]), bytes_on(several.model, jax.devices()[5])
print(f"{whole:,} bytes on one device, {share:,} on each of eight")
assert 0.5 < share / whole < 0.52  # norms are everywhere

# %% [markdown]
# The cache of a batch of eight is split over both axes: two sequences and one KV head of two on each device.

# %%
cache = several.model.init_cache(8, 64)
keys = cache.layers[0].keys
print(keys.shape, keys.sharding.spec)
for shard in keys.addressable_shards[:3]:
    print(shard.device, [(part.start, part.stop) for part in shard.index[:2]])

# %% [markdown]
# ## The same logits

# %%
tokens = jnp.asarray(np.random.default_rng(0).integers(0, 1000, (8, 12)), jnp.int32)


def step_of(lm):
    graphdef, state = nnx.split(lm.model)
    step = jax.jit(lambda state, tokens, cache: nnx.merge(graphdef, state)(tokens, cache))
    return step, state


found = []
for lm in (several, one):
    step, state = step_of(lm)
    logits, cache = step(state, tokens, lm.model.init_cache(8, 64))
    found.append(np.asarray(logits))
difference = np.linalg.norm(found[0] - found[1]) / np.linalg.norm(found[1])
print("relative difference below 1e-5:", difference < 1e-5)
assert difference < 1e-5

ask = dict(max_tokens=8, temperature=0)
texts = [lm.generate("ROMEO:", **ask) for lm in (several, one)]
assert texts[0].ids == texts[1].ids
print(texts[0].text)

# %% [markdown]
# ## What the devices exchange
#
# The compiled program of a step shows it: an `all-reduce` adds what devices computed. A decode step has two for each layer, after attention and after the feed-forward, and one after the embedding, whose rows the devices
# share. An `all-gather` of a weight would be a mistake; there is none.

# %%
step, state = step_of(several)
program = step.lower(state, tokens[:, :1], several.model.init_cache(8, 64)).compile().as_text()
kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
collectives = collections.Counter(re.findall(rf" ({kinds})(?:-start)?\(", program))
print(dict(collectives), "in", len(several.model.blk), "layers")
assert collectives == {"all-reduce": 1 + 2 * len(several.model.blk)}

# %% [markdown]
# ## What does not divide
#
# The demo has two KV heads. On four devices of the axis "model", each holds both, and `load` warns of it.

# %%
import warnings

with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    rf.load("demo", mesh=jax.make_mesh((2, 4), ("data", "model")), **options)
print(str(said[0].message).partition(": ")[2])

# %% [markdown]
# `close` gives the memory back. [docs/sharding.md](../docs/sharding.md) has the rest: checkpoints, one device of several, and parts of a model.

# %%
one.close()
several.close()
several
