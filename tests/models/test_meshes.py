"""A model on eight devices: arrays that a user splits, and models that are loaded onto a mesh.

Child processes compute, because the number of devices is fixed when JAX starts.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import rocmforge_jax as rf
from tests.conftest import ROOT
from tests.cpp.conftest import NEEDS_CPP
from tests.models.synthetic_cases import CASES

FOLDER = Path(__file__).parent
#: Of a decode step of the demo: two sums in each of 4 layers, and one after the embedding.
SUMS = {"all-reduce": 9}


def printed(program, *arguments) -> list[dict]:
    """Runs a program of this folder and returns the JSON objects that it prints."""
    path = FOLDER / f"{program}.py"
    run = f"import sys; sys.argv[0] = {str(path)!r}; exec(open({str(path)!r}).read())"
    command = [sys.executable, "-c", run, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.core
@NEEDS_CPP
def test_a_batch_is_split(in_cpp):
    (cases,) = printed("meshes")
    assert cases.pop("generates")
    for name, case in cases.items():
        assert case["difference"] < 1e-5, (name, case)
        if name.startswith("forward"):
            assert (case["collectives"], case["split"]) == ({}, ["data"]), name
        else:
            assert case["collectives"] == {"all-reduce": 1}, name


@pytest.fixture(scope="module")
def found():
    """What `loaded_on_meshes` finds, without C++."""
    (found,) = printed("loaded_on_meshes", "load")
    return found


MESHES = ["4 x 2, Auto", "4 x 2, Explicit", "2 x 4, Auto", "model"]


@pytest.mark.parametrize("mesh", MESHES)
def test_a_mesh_computes_what_one_device_computes(found, mesh):
    assert max(found[mesh]["differences"]) < 1e-5
    assert found[mesh].get("answers", found["answers"]) == found["answers"]


def test_a_step_exchanges_sums_alone(found):
    """With 2 KV heads on 4 devices attention is whole on each, and gathers the queries."""
    assert found["4 x 2, Auto"]["collectives"] == SUMS
    assert found["2 x 4, Auto"]["collectives"] == SUMS | {"all-gather": found["layers"]}
    # Explicit axes promise logits that are split like the tokens.
    assert found["4 x 2, Explicit"]["collectives"].keys() == {"all-reduce", "all-gather"}
    assert found["4 x 2, Explicit"]["collectives"]["all-gather"] < found["layers"]


def test_weights_and_caches_are_split_by_their_roles(found):
    by_outputs, by_inputs = "P(None, 'model')", "P('model', None)"  # planes in columns
    specs = found["4 x 2, Auto"]["specs"]
    assert specs == found["4 x 2, Explicit"]["specs"] == found["model"]["specs"]
    assert {name for name, spec in specs.items() if spec == by_inputs} == {
        "attn_output",
        "ffn_down",
    }
    assert {name for name, spec in specs.items() if spec == by_outputs} == {
        *("token_embd", "attn_q", "attn_k", "ffn_up"),
    }
    assert found["2 x 4, Auto"]["specs"] == specs | {"attn_k": "P(None, None)"}
    assert found["4 x 2, Auto"]["cache"] == ["P('data', 'model')"] * 2
    assert found["2 x 4, Auto"]["cache"] == ["P('data',)"] * 2


def test_one_warning_lists_what_does_not_split(found):
    assert found["4 x 2, Auto"]["said"] == found["model"]["said"] == []
    (said,) = found["2 x 4, Auto"]["said"]
    assert said.endswith(
        "each of 4 devices holds all of blk.*.attn_k.weight, blk.*.attn_v.weight (2 KV heads)"
    )


def test_the_file_is_read_once(found):
    read, size = found["read"]
    assert read == size


def test_the_plan_counts_what_one_device_holds_of_a_cache(found):
    whole, by_two, by_four = found["plans"]  # with 2 KV heads
    assert whole == by_four == 2 * by_two - 4  # the number of tokens is everywhere


def test_each_device_calls_kernels_and_the_report_says_what_they_cannot(found):
    """With Pallas's interpreter in place of GPUs."""
    backends = {(operation, backend) for operation, backend, _ in found["report"]}
    assert backends == {
        ("matmul", "pallas"),
        ("attention", "pallas"),
        ("products", "xla"),
        ("take_rows", "xla"),
    }
    reasons = [why for operation, _, why in found["report"] if operation == "products"]
    assert reasons and all("8" in why for why in reasons)


def test_a_device_holds_weights_cache_and_results(found):
    assert found["device"] == ["cpu:3"]
    assert found["on the device"] == found["answers"]


def test_a_checkpoint_is_restored_onto_other_devices(tmp_path):
    """Saved from a mesh of 2 x 4 in one process, restored onto 4 x 2 and onto one in another."""
    printed("loaded_on_meshes", "save", tmp_path / "checkpoint")
    (found,) = printed("loaded_on_meshes", "restore", tmp_path / "checkpoint")
    assert found.keys() == {"mesh", "device"}
    for name, case in found.items():
        assert case == dict(equal=True, placed=True, structure=True, logits=0), name


def differences(paths):
    found = {
        name: case for one in printed("families_on_meshes", *paths) for name, case in one.items()
    }
    assert len(found) == len(paths)
    for name, case in found.items():
        assert max(case["differences"]) < 1e-5 and case["split"], (name, case)


def written(folder, cases):
    for case in cases:
        case.write(folder / f"{case}.gguf")
    return sorted(folder.iterdir())


def test_families_on_a_mesh(tmp_path):
    """A mixture, delta nets beside attention, latent attention."""
    names = ("deepseek", "qwen35-nextn", "deepseek2-legacy")
    differences(written(tmp_path, [case for case in CASES if case.name in names]))


@pytest.mark.heavy
def test_all_families_on_a_mesh(tmp_path):
    differences(written(tmp_path, CASES))


@pytest.mark.heavy
def test_all_packed_families_on_a_mesh(whole_reference):
    differences(sorted((whole_reference / "families").glob("*.gguf")))


@pytest.mark.core
@pytest.mark.parametrize(
    ("mesh", "error", "match"),
    [
        ("data", TypeError, "Mesh.*str"),
        (["cpu:0"], TypeError, "Mesh.*list"),
        (("x",), ValueError, "'data' and 'model'.*got 'x'"),
        (("model", "expert"), ValueError, "'data' and 'model'.*got 'model', 'expert'"),
    ],
)
def test_what_is_no_mesh_of_a_model(mesh, error, match):
    import jax

    mesh = jax.make_mesh((1,) * len(mesh), mesh) if isinstance(mesh, tuple) else mesh
    with pytest.raises(error, match=match):
        rf.load("no such file", mesh=mesh)


@pytest.mark.core
def test_a_mesh_or_a_device():
    import jax

    with pytest.raises(ValueError, match="device or mesh.*cpu.*data"):
        rf.load("no such file", mesh=jax.make_mesh((1,), ("data",)), device="cpu")


@pytest.mark.core
def test_a_mesh_of_one_device():
    import jax

    lm = rf.load("demo", mesh=jax.make_mesh((1, 1), ("data", "model")), progress=False)
    whole = rf.load("demo", progress=False)
    ask = dict(max_tokens=3, temperature=0)
    assert lm.generate("ROMEO:", **ask) == whole.generate("ROMEO:", **ask)
