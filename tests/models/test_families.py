"""Every family against llama.cpp's logits: in one go, in pieces, token by token, in a ragged batch
and after a reused prefix, with plain XLA and with C++.

In one go for every family in the quick runs, in other ways for one of each kind.
"""

import json

import jax
import numpy as np
import pytest

from rocmforge_jax.models import ARCHITECTURES, kernel_report
from tests.models import families
from tests.models.families import FILES, NEW, OLD, WAYS
from tests.models.test_logits import CORE, OTHERS

#: Name -> the backend and the mode of activations. "auto" is C++ here, which computes attention in
#: both modes, and products in int16 alone.
RUNS = {"xla": ("xla", "float"), "cpp-float": ("auto", "float"), "cpp-int16": ("auto", "int16")}
#: The runs of each way that are quick, given that XLA compiles; the others are heavy.
QUICK = {
    families.in_one_go: ("xla", "cpp-int16"),
    families.in_pieces: ("cpp-float",),
    families.token_by_token_at_first: ("xla",),
    families.in_a_ragged_batch: ("cpp-float",),
    families.after_rewinding: ("cpp-float",),
    families.after_other_answers: ("cpp-int16",),
}
#: Latent attention is computed by plain XLA everywhere, and Mamba 2 has no attention.
IN_XLA_ALONE = {"families/deepseek2-v3.Q4_K_M", "families/mamba2.Q4_K_M"}
#: One file of each kind of layer and state, which the quick runs compute in several ways: windows,
#: sinks, shared keys and values, convolutions, delta nets, latents, state spaces beside experts.
#: The last one is an older file, which every clone has.
KINDS = {
    "models/gemma3.Q8_0",
    "models/gpt-oss.MXFP4_MOE",
    "families/gemma4-e.Q4_0",
    "families/lfm2.Q4_K_M",
    "families/qwen35.Q4_K_M",
    "families/deepseek2-v3.Q4_K_M",
    "families/granitehybrid.Q4_K_M",
    "models/qwen2.Q4_K_M",
}
#: Those of them that take the ways that a ragged batch includes: pieces, then single tokens.
EVERY_WAY = {
    "models/gemma3.Q8_0",
    "families/qwen35.Q4_K_M",
    "families/deepseek2-v3.Q4_K_M",
    "models/qwen2.Q4_K_M",
}
#: Ways of the others, and the runs that are quick.
OTHERS_QUICK = {way: QUICK[way] for way in (families.in_one_go, families.in_a_ragged_batch)}


def _marks(file, way, run):
    if file.name in KINDS:
        ways = QUICK if file.name in EVERY_WAY else OTHERS_QUICK
        return pytest.mark.core if run in ways.get(way, ()) else pytest.mark.heavy
    quick = file not in OLD and way is families.in_one_go and run == "xla"
    return () if quick else pytest.mark.heavy


def _cases():
    for file in FILES:
        for way in (*WAYS, families.token_by_token_at_first):
            for run in RUNS:
                marks, name = _marks(file, way, run), f"{file}-{way.__name__}-{run}"
                yield pytest.param(file, way, run, marks=marks, id=name)


#: Single rows of these are up to 8.5e-6 from those of another way in programs as users have them,
#: and 1.1e-5 in those that the tests compile cheaply.
NEAR_THE_GATE = {"families/deepseek2-v3.Q4_K_M"}


@pytest.fixture
def optimised_programs():
    cheap = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", cheap)


@pytest.mark.parametrize(("file", "way", "run"), list(_cases()))
def test_logits_are_llama_cpp_s(file, way, run, request, reference):
    backend, activations = RUNS[run]
    if backend == "auto":
        request.getfixturevalue("in_cpp")
    if file.name in NEAR_THE_GATE:
        request.getfixturevalue("optimised_programs")
    decoder = families.load(reference, file.name, backend, activations)
    truth, whole = families.read(reference, file.name), families.whole(reference, file.name)
    for found in way(decoder, truth.ids):
        families.check(file, truth, found, activations)
        families.check_beside_whole(file, whole, found, activations)


@pytest.mark.parametrize("file", NEW, ids=str)
def test_attention_is_in_c_plus_plus(file, whole_reference, in_cpp):
    """With its windows, soft caps and sinks."""
    report = kernel_report(families.load(whole_reference, file.name, "auto", "int16"))
    used = {entry.backend for entry in report if entry.operation == "attention"}
    assert used == (set() if file.name in IN_XLA_ALONE else {"cpp"})


@pytest.mark.core
def test_a_wrong_logit_is_noticed():
    """The gates compare all rows that are stored, so one wrong row of many fails them."""
    random = np.random.default_rng(0).normal(size=(40, 50))
    file, truth = FILES[0], families.Reference(None, np.arange(40) * 3, random)
    found = dict(zip(truth.rows, random))
    families.check(file, truth, found, "float")
    with pytest.raises(AssertionError):
        families.check(file, truth, found | {9: random[3] * 1.01}, "float")


@pytest.mark.core
@pytest.mark.parametrize("folder", ["models", "families"])
def test_every_reference_file_of_a_known_architecture_is_compared(folder, whole_reference):
    """Embedding models have no logits; they are not read yet."""
    files = json.loads((whole_reference / folder / "index.json").read_text())["files"]
    known = {
        f"{folder}/{name}"
        for name, file in files.items()
        if file["arch"] in ARCHITECTURES and file.get("kind") != "embedding"
    }
    compared = {file.name for file in FILES} | {f"models/{name}" for name in (*CORE, *OTHERS)}
    assert known == {name for name in compared if name.startswith(f"{folder}/")}
