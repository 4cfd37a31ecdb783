# %% [markdown]
# # A jit-compiled script
#
# Inference as one compiled function that you own: weights and cache are arguments, the cache is donated, sampling is part of the program. This notebook writes it, asks the compiler what it costs,
# measures it, and looks into a profile.

# %%
import functools
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

import rocmforge_jax as rf

lm = rf.load("demo")  # or the path of a GGUF file
model = lm.model
prompt = lm.prompt_ids("ROMEO:\n")

# %% [markdown]
# ## Structure and arrays
#
# `nnx.split` separates the structure from the arrays. A step takes the flat list of arrays: so a dispatch has no tree to walk, which costs more than a small model computes.

# %%
graphdef, state = nnx.split(model)
leaves, treedef = jax.tree.flatten(state)
print(f"{len(leaves)} arrays, {sum(leaf.nbytes for leaf in leaves):,} bytes")


@functools.partial(jax.jit, donate_argnums=1)
def step(leaves, cache, tokens_BT, key, temperature):
    """Adds tokens to the cache and draws the next one; returns it, the cache, the next key."""
    decoder = nnx.merge(graphdef, jax.tree.unflatten(treedef, leaves))
    logits_BV, cache = decoder(tokens_BT, cache, last_only=True)
    key, now = jax.random.split(key)
    drawn_B = jax.random.categorical(now, logits_BV / jnp.maximum(temperature, 1e-6))
    tokens_B = jnp.where(temperature > 0, drawn_B, logits_BV.argmax(axis=-1))
    return tokens_B[:, None].astype(jnp.int32), cache, key


# %% [markdown]
# The prompt is one call, each new token another. The cache is donated: it is written in place and the old name is gone. Nothing comes back to the host before the end.

# %%
def generate(count, temperature=0.0, seed=0):
    """Generates `count` tokens; returns their ids."""
    cache, key = model.init_cache(1, 256), jax.random.key(seed)
    temperature = jnp.float32(temperature)
    token, cache, key = step(leaves, cache, jnp.array([prompt], jnp.int32), key, temperature)
    tokens = [token]
    for _ in range(count - 1):
        token, cache, key = step(leaves, cache, token, key, temperature)
        tokens.append(token)
    return jnp.concatenate(tokens, axis=1)[0].tolist()


ids = generate(24)
print(lm.tokenizer.decode(ids))
assert ids == lm.generate("ROMEO:\n", max_tokens=24, temperature=0).ids

# %% [markdown]
# ## What the compiler says
#
# `lower` and `compile` give the program without running it. A step of one token multiplies each weight once: two operations a weight. Compiled kernels are calls that the compiler does not count.

# %%
cache = model.init_cache(1, 256)
arguments = leaves, cache, jnp.array([[1]], jnp.int32), jax.random.key(0), jnp.float32(0)
compiled = step.lower(*arguments).compile()

weights = rf.models.param_count(model)
cost, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
assert memory is not None  # backends may not know
print(f"weights: {weights:,}, {2 * weights:,} operations for a token")
print(f"counted by the compiler: {cost.get('flops', 0):,.0f} operations")
print(
    f"arguments {memory.argument_size_in_bytes:,} bytes,"
    f" {memory.alias_size_in_bytes:,} of them written in place"
)
print(
    f"temporaries {memory.temp_size_in_bytes:,} bytes;"
    f" all weights in float32 would be {4 * weights:,}"
)
assert memory.alias_size_in_bytes >= cache.nbytes - 64  # the cache is not copied
assert memory.temp_size_in_bytes < 4 * weights

# %% [markdown]
# Which backend computes what, and why, is in the kernel report:

# %%
rf.kernel_report(model)


# %% [markdown]
# ## Tokens per second
#
# A fair measurement has the programs compiled, waits for the result, and takes the best of a few runs. Decoding reads every weight for each token, so the bytes per second say how near the machine's memory
# bandwidth it is.

# %%
def best_time(function, runs=3):
    """The seconds of the fastest of several runs."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


count = 64
seconds = best_time(lambda: generate(count))
packed = sum(leaf.nbytes for leaf in leaves)
print(f"{count / seconds:.0f} tokens/s, {packed * count / seconds / 1e9:.2f} GB/s of weights")


# %% [markdown]
# Two other ways to dispatch the same program: the module as an argument of `jax.jit`, and `nnx.jit`, which also looks for changes of the module. And one without any dispatch between tokens: the loop
# itself is compiled.

# %%
@jax.jit
def with_module(decoder, cache, tokens_BT):
    return decoder(tokens_BT, cache, last_only=True)


@nnx.jit
def with_nnx(decoder, cache, tokens_BT):
    return decoder(tokens_BT, cache, last_only=True)


@jax.jit
def with_leaves(leaves, cache, tokens_BT):
    return nnx.merge(graphdef, jax.tree.unflatten(treedef, leaves))(
        tokens_BT, cache, last_only=True
    )


@functools.partial(jax.jit, static_argnums=2)
def whole_loop(leaves, cache, count):
    decoder = nnx.merge(graphdef, jax.tree.unflatten(treedef, leaves))

    def one(carry, _):
        token, cache = carry
        logits, cache = decoder(token, cache, last_only=True)
        token = logits.argmax(axis=-1)[:, None].astype(jnp.int32)
        return (token, cache), token[0, 0]

    token = jnp.array([[1]], jnp.int32)
    return jax.lax.scan(one, (token, cache), None, length=count)[1]


def loop(call, first, count=32):
    """Calls a step `count` times."""
    cache, token = model.init_cache(1, 256), jnp.array([[1]], jnp.int32)
    for _ in range(count):
        logits, cache = call(first, cache, token)
    jax.block_until_ready(logits)


ways = {
    "flat leaves": lambda: loop(with_leaves, leaves),
    "jax.jit(module)": lambda: loop(with_module, model),
    "nnx.jit": lambda: loop(with_nnx, model),
    "scan in one program": lambda: jax.block_until_ready(
        whole_loop(leaves, model.init_cache(1, 256), 32)
    ),
}
for name, way in ways.items():
    way()  # compiles
    print(f"{name:20} {1e3 * best_time(way) / 32:6.2f} ms a token")

# %% [markdown]
# ## A profile
#
# `jax.profiler.trace` writes what ran when. TensorBoard and Perfetto show the file; here we read it: which operations took the time?

# %%
from jax.profiler import ProfileData

with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
        generate(16)
    (path,) = Path(folder).rglob("*.xplane.pb")
    profile = ProfileData.from_serialized_xspace(path.read_bytes())

totals = {}
for plane in profile.planes:
    for line in plane.lines:
        for event in line.events:
            if any(key == "hlo_op" for key, _ in event.stats):  # operations of compiled programs
                totals[event.name] = totals.get(event.name, 0) + event.duration_ns
top = sorted(totals.items(), key=lambda item: -item[1])[:8]
for name, nanoseconds in top:
    print(f"{nanoseconds / sum(totals.values()):6.1%}  {name}")
assert top
