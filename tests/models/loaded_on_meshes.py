"""Runs on eight virtual devices: the demo model, loaded on meshes and on a device.

The first argument is what to do: "load", "save" or "restore"; the second a folder for the last two.
Prints one JSON object.
"""

import collections
import json
import os
import re
import sys
import warnings

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import rocmforge_jax as rf
from pallas_kernels import targets
from rocmforge_jax.locate import DEMO
from rocmforge_jax.models import load_decoder, plan_memory
from rocmforge_jax.models.place import Placer

COLLECTIVES = r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
PROMPTS = ["ROMEO:", "To be, or not", "a"]
TOKENS = jnp.asarray(np.random.default_rng(3).integers(0, 1000, (4, 9)), jnp.int32)
OPTIONS = dict(progress=False, activations="float")


def mesh_of(*sizes, kind=AxisType.Explicit):
    return jax.make_mesh(sizes, ("data", "model"), (kind,) * 2)


def loaded(**options):
    """The model, and the words of the warnings of loading it."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        lm = rf.load("demo", **OPTIONS, **options)
    return lm, [str(one.message) for one in said]


def steps(model):
    """Logits of a prompt and of a token after it, and the text of the second program."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def step(state, tokens_BT, cache):
        return nnx.merge(graphdef, state)(tokens_BT, cache)

    first, cache = step(state, TOKENS[:, :-1], model.init_cache(4, 16))
    last, after = step(state, TOKENS[:, -1:], cache)
    text = step.lower(state, TOKENS[:, -1:], cache).compile().as_text()
    return (first, last), cache, after, text


def distance(found, expected):
    found, expected = np.float64(found), np.float64(expected)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def answers(lm):
    return [answer.ids for answer in lm.generate(PROMPTS, max_tokens=6, temperature=0)]


def specs(model):
    """How kernels are split: the name of the module -> the spec of its first plane."""
    layer = model.blk[1]
    weights = {
        "token_embd": model.token_embd.embedding,
        **{name: getattr(layer, name).kernel for name in ("attn_q", "attn_k", "attn_output")},
        **{name: getattr(layer, name).kernel for name in ("ffn_up", "ffn_down")},
    }
    return {
        name: str(jax.tree.leaves(weight.get_value())[0].sharding.spec)
        for name, weight in weights.items()
    }


def described(lm, said, exact):
    logits, cache, after, text = steps(lm.model)
    return dict(
        differences=[distance(*pair) for pair in zip(logits, exact)],
        collectives=collections.Counter(re.findall(COLLECTIVES, text)),
        specs=specs(lm.model),
        cache=[str(one.layers[0].keys.sharding.spec) for one in (cache, after)],
        said=said,
    )


def parts(model):
    """What parts of a model compute, with tokens that are split over its mesh."""
    graphdef, state = nnx.split(model)
    sharding = jax.tree.leaves(state)[0].sharding
    tokens_BT = jax.device_put(TOKENS, NamedSharding(sharding.mesh, PartitionSpec("data")))

    @jax.jit
    def computed(state, tokens_BT):
        model = nnx.merge(graphdef, state)
        hidden_BTD, _ = model.hidden(tokens_BT)
        return hidden_BTD, model.head(hidden_BTD), model.embed(tokens_BT, pooling="mean")

    return computed(state, tokens_BT)


def load():
    one, _ = loaded()
    whole, _ = loaded(mesh=jax.make_mesh((1,), ("data",)))
    exact, *_ = steps(one.model)
    found = {"answers": answers(one), "layers": len(one.model.blk)}
    for name, mesh in {
        "4 x 2, Auto": mesh_of(4, 2, kind=AxisType.Auto),
        "4 x 2, Explicit": mesh_of(4, 2),
        "2 x 4, Auto": mesh_of(2, 4, kind=AxisType.Auto),
        "model": jax.make_mesh((2,), ("model",), devices=jax.devices()[2:4]),
    }.items():
        lm, said = loaded(mesh=mesh)
        found[name] = described(lm, said, exact)
        if name in ("4 x 2, Explicit", "2 x 4, Auto"):
            found[name]["answers"] = answers(lm)
            pairs = zip(parts(lm.model), parts(whole.model))
            found[name]["differences"] += [distance(*pair) for pair in pairs]
            likely = (rf.explore.next_tokens(each, PROMPTS[1]).probabilities for each in (lm, one))
            found[name]["differences"].append(distance(*likely))
    read = []
    make = Placer._value
    Placer._value = lambda self, claim, data, device: (
        read.append(data.nbytes),
        make(self, claim, data, device),
    )[1]
    loaded(mesh=mesh_of(4, 2))
    gguf = rf.open_gguf(DEMO)
    found["read"] = sum(read), sum(tensor.nbytes for tensor in gguf.tensors.values())
    plans = [
        plan_memory(gguf, one.model.config, "float32", mesh=mesh).cache
        for mesh in (None, mesh_of(4, 2), mesh_of(2, 4))
    ]
    found["plans"] = plans
    with targets.use(targets.INTERPRET):
        model = load_decoder(gguf, mesh=mesh_of(4, 2), layout="groups", layers=1)
        entries = rf.kernel_report(model)
    found["report"] = sorted({(entry.operation, entry.backend, entry.why) for entry in entries})
    lm, _ = loaded(device="cpu:3")
    logits, cache, _, _ = steps(lm.model)
    held = lm.engine.prefill([[1, 2, 3]])
    arrays = jax.tree.leaves((nnx.state(lm.model), logits, cache, held))
    found["device"] = sorted({str(device) for array in arrays for device in array.devices()})
    found["on the device"] = answers(lm)
    return found


def save(folder):
    import orbax.checkpoint as ocp

    model = loaded(mesh=mesh_of(2, 4))[0].model
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, nnx.state(model))
    return {"saved": len(jax.tree.leaves(nnx.state(model)))}


def restore(folder):
    import orbax.checkpoint as ocp

    found = {}
    for name, options in {"mesh": {"mesh": mesh_of(4, 2)}, "device": {"device": "cpu:5"}}.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            abstract = rf.load_abstract("demo", activations="float", **options)
        graphdef, state = nnx.split(abstract)
        with ocp.StandardCheckpointer() as checkpointer:
            restored = nnx.merge(graphdef, checkpointer.restore(folder, state))
        model = loaded(**options)[0].model
        pairs = list(zip(*(jax.tree.leaves(nnx.state(one)) for one in (restored, model))))
        found[name] = dict(
            equal=all(np.array_equal(a, b) for a, b in pairs),
            placed=all(a.sharding == b.sharding for a, b in pairs),
            structure=nnx.graphdef(restored) == nnx.graphdef(model),
            logits=distance(restored(TOKENS)[0], model(TOKENS)[0]),
        )
    return found


what, *folder = sys.argv[1:]
print(json.dumps({"load": load, "save": save, "restore": restore}[what](*folder), default=str))
