"""A decoding loop by hand, and what each way of dispatching a step costs: own_loop.py [MODEL]"""

import sys
import time

import jax
import jax.numpy as jnp
from flax import nnx

import rocmforge_jax as rf

lm = rf.load((*sys.argv[1:], "demo")[0])
leaves, structure = jax.tree.flatten(nnx.split(lm.model))


def step(model, tokens_BT, cache):
    logits_BV, cache = model(tokens_BT, cache, last_only=True)
    return logits_BV.argmax(axis=-1)[:, None].astype(jnp.int32), cache


def flat(leaves, tokens_BT, cache):
    return step(nnx.merge(*jax.tree.unflatten(structure, leaves)), tokens_BT, cache)


ways = {  # the donated cache is updated in place: without that, each step copies it
    "jax.jit of flat leaves": (jax.jit(flat, donate_argnums=2), leaves),
    "jax.jit of the module": (jax.jit(step, donate_argnums=2), lm.model),
    "nnx.jit of the module": (nnx.jit(step, donate_argnums=2), lm.model),
}
prompt = jnp.array([lm.tokenizer.encode("ROMEO:", add_special=True)], jnp.int32)
for name, (jitted, model) in ways.items():
    (token, cache), ids, times = jitted(model, prompt, lm.model.init_cache(1, 64)), [], []
    for _ in range(40):
        start = time.perf_counter()
        token, cache = jitted(model, token, cache)
        times.append(time.perf_counter() - start)  # dispatching, not computing
        ids.append(int(token[0, 0]))  # waits for the step
    print(f"{name}: {1e3 * sorted(times)[20]:.2f} ms to dispatch a step of {len(leaves)} arrays")
print(lm.tokenizer.decode(ids))
