"""Whole models on a GPU: kernels against plain XLA on the same device, and against llama.cpp's
logits; `make test-gpu`.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rocmforge_jax
from rocmforge_jax.generate import SamplingParams
from rocmforge_jax.generate.steps import start
from rocmforge_jax.gguf import open_gguf
from rocmforge_jax.models import kernel_report, load_decoder
from rocmforge_jax.models.plan import TOKENS_PER_DISPATCH
from tests.models import families
from tests.models.test_logits import CORE, OTHERS

pytestmark = pytest.mark.gpu

#: Ways through a prompt -> the files that go that way, where not all do: what the engine does with
#: a prefix it does without kernels, and it compiles longest.
ONLY = {families.after_other_answers: ("models/gemma3.Q8_0", "families/lfm2.Q4_K_M")}
#: Relative error of logits with activations in 15 bits; float32 alone stays below 1e-5.
INT16 = 5e-4
#: Tokens of the prompt that go in one by one, after a prefill of the others.
SINGLE = 40
PROMPTS = ("ROMEO:", "The king", "Enter a messenger.")


def stepped(decoder, tokens_BT, single):
    """Logits [B, 1 + single, V] of the last `single` tokens of a text, one at a time, and of the
    token before them.
    """
    graphdef, state = nnx.split(decoder)
    leaves, treedef = jax.tree.flatten(state)

    def run(leaves, tokens, cache):
        return nnx.merge(graphdef, jax.tree.unflatten(treedef, leaves))(
            tokens, cache, last_only=True
        )

    step, T = jax.jit(run, donate_argnums=2), tokens_BT.shape[1]
    logits, cache = step(leaves, tokens_BT[:, : T - single], decoder.init_cache(len(tokens_BT), T))
    every = [logits]
    for t in range(T - single, T):
        logits, cache = step(leaves, tokens_BT[:, t : t + 1], cache)
        every.append(logits)
    return np.float64(jnp.stack(every, axis=1))


def test_greedy_text_of_the_demo_is_that_of_plain_xla():
    texts = {}
    for choice in ("xla", "pallas"):
        model = rocmforge_jax.load(
            "demo", dtype=jnp.float32, activations="float", backend=choice, progress=False
        )
        used = {
            entry.backend
            for entry in kernel_report(model.model)
            if entry.operation in ("matmul", "attention") and "not packed" not in entry.why
        }
        assert used == {choice}
        texts[choice] = [
            model.generate(prompt, max_tokens=64, params=SamplingParams(temperature=0)).ids
            for prompt in PROMPTS
        ]
    assert all(map(len, texts["xla"])) and texts["pallas"] == texts["xla"]


@pytest.mark.parametrize("name", [*CORE, *OTHERS])
def test_logits_of_single_tokens_are_llama_cpp_s(name, reference, relative):
    """The last tokens of the long prompt, each of them a step with kernels.

    Where llama.cpp's logits of them are stored.
    """
    files = [reference / "models" / file for file in ("index.json", f"{name}.gguf", f"{name}.npy")]
    if missing := [file.name for file in files if not file.is_file()]:
        pytest.skip(f"no {', '.join(missing)} in the reference data")
    index = json.loads(files[0].read_text())
    ids, first = np.array(index["ids"], np.int32)[None], len(index["ids"]) - SINGLE - 1
    decoder = load_decoder(open_gguf(files[1]), dtype=jnp.float32, activations="int16")
    logits = stepped(decoder, jnp.asarray(ids), SINGLE)[0]
    stored = [(row, position) for row, position in enumerate(index["rows"]) if position > first]
    assert stored
    expected = np.load(files[2])[[row for row, _ in stored]]
    assert relative(logits[[position - first for _, position in stored]], expected) < INT16


def _family_cases():
    for file in families.NEW:
        for way in families.WAYS:
            if file.name in ONLY.get(way, (file.name,)):
                yield pytest.param(file, way, id=f"{file}-{way.__name__}")


@pytest.mark.parametrize(("file", "way"), list(_family_cases()))
def test_family_has_llama_cpp_s_logits_in_float(file, way, whole_reference):
    """In float32 throughout, with attention in kernels."""
    decoder = families.load(whole_reference, file.name, "auto", "float")
    truth = families.read(whole_reference, file.name)
    for found in way(decoder, truth.ids):
        families.check(file, truth, found, "float")


@pytest.mark.parametrize("activations", ["float", "int16"])
@pytest.mark.parametrize("file", families.NEW, ids=str)
def test_family_attends_in_kernels(file, activations, whole_reference):
    """With its windows, soft caps and sinks, for one token and for many; not in plain XLA.

    One token is computed by kernels alone, but for the row of the embedding and for products with
    weights that are not packed, such as the gate of shared experts.
    """
    report = kernel_report(families.load(whole_reference, file.name, "auto", activations))
    attention = {
        (entry.tokens, entry.backend) for entry in report if entry.operation == "attention"
    }
    assert attention == {("one token", "pallas"), ("many tokens", "pallas")}
    of_one = [entry for entry in report if entry.tokens == "one token"]
    others = [entry for entry in of_one if entry.backend != "pallas"]
    packed = {entry.operation for entry in others if "not packed" not in entry.why}
    assert packed == {"take_rows"}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_takes_nothing_to_the_host(dtype, batch):
    """Compiling, where kernels are tried, comes before."""
    engine = rocmforge_jax.load("demo", dtype=jnp.dtype(dtype), progress=False).engine
    prompts, params = [[1, 2, 3]] * batch, [SamplingParams(seed=1)] * batch
    slots, _, _ = start(*engine.prefill(prompts, slots=64), prompts, params)
    slots, _, _ = engine.steps.decode(slots, TOKENS_PER_DISPATCH)
    with jax.transfer_guard_device_to_host("disallow"):
        _, ids, _ = jax.block_until_ready(engine.steps.decode(slots, TOKENS_PER_DISPATCH))
        with pytest.raises(Exception, match="Disallowed device-to-host transfer"):
            np.asarray(ids)
    assert np.asarray(ids).shape == (batch, TOKENS_PER_DISPATCH)
