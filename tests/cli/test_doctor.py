"""doctor: facts of this machine, and what it knows about others."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from rocmforge_jax.cli import doctor, machine
from rocmforge_jax.cli.machine import Facts
from rocmforge_jax.cli.problem import Problem
from rocmforge_jax.cli.problems import problems
from rocmforge_jax.cpp import build

pytestmark = pytest.mark.core

HEALTHY = Facts(
    {"jax": "0.12.0"},
    [{"platform": "cpu", "kind": "cpu", "memory_bytes": 1}],
    amd=False,
    nvidia=False,
)


def told(**changes):
    return list(problems(dataclasses.replace(HEALTHY, **changes)))


def gpu(kind, platform="gpu"):
    return [{"platform": platform, "kind": kind, "memory_bytes": 1 << 30}]


def test_this_machine(run):
    report = json.loads(run("doctor", "--json").out)
    assert report["devices"][0]["platform"] == "cpu" and report["devices"][0]["memory_bytes"] > 0
    operations = report["operations"]
    assert set(operations) == {"dequantize", "matmul", "take_rows", "attention", "planes"}
    assert re.match("xla: .* not built .*rocmforge-jax build-native", operations["matmul"])
    assert operations["planes"] == "columns"
    assert report["versions"]["jax"][0].isdigit()


def test_this_machine_with_the_products_in_cpp(run, in_cpp):
    operations = json.loads(run("doctor", "--json").out)["operations"]
    assert all(operations[name].startswith("cpp: ") for name in ("matmul", "attention"))
    assert operations["planes"] == "groups" and operations["dequantize"].startswith("xla: ")


@pytest.mark.parametrize("backend", ["pallas", "cpp"])
def test_a_backend_that_cannot_run_is_named_with_the_reason(backend, run, monkeypatch):
    monkeypatch.setenv("ROCMFORGE_BACKEND", backend)
    ran = run("doctor", "--json")
    found = json.loads(ran.out)["operations"]["matmul"]
    assert ran.code == 1 and re.match(f"cannot run: matmul: .*{backend}.*'auto'", found)
    assert "cannot run: dequantize: " in ran.out or backend == "cpp"
    assert "unset ROCMFORGE_BACKEND" in ran.out
    ran = run("generate", "--prompt", "A", "--max-tokens", "1")
    assert ran.code == 2 and backend in ran.err and "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("environment", "what", "remedy"),
    [
        ({"JAX_PLATFORMS": "nothing"}, "Unable to initialize backend 'nothing'", "unset JAX_PLAT"),
        ({"JAX_ENABLE_X64": "maybe"}, "'maybe'", "unset JAX_ENABLE_X64, which is 'maybe'"),
        ({"XLA_FLAGS": "--xla_nothing"}, "Unknown flag.* in XLA_FLAGS", "unset XLA_FLAGS"),
        ({"ROCMFORGE_BACKEND": "cuda"}, "got 'cuda'", "unset ROCMFORGE_BACKEND"),
        (
            {"CXX": "no-such", "HOME": "/dev/null", "XDG_CACHE_HOME": "", "JAX_PLATFORMS": "none"},
            "the C.. library is missing.* no C.. compiler.*\n.*\n.*/dev/null/.cache/rocmforge-jax",
            "rocmforge-jax build-native\n.*\n.*XDG_CACHE_HOME",
        ),
        ({"CXX": "g++ '", "JAX_PLATFORMS": "none"}, "no C.. compiler", "name one with CXX"),
    ],
    ids=["platform", "variable", "flags", "backend", "home", "quote"],
)
def test_it_prints_in_every_environment(run, monkeypatch, environment, what, remedy):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ran = run("doctor")
    assert ran.code == 1 and ran.err == "" and "jaxlib" in ran.out
    assert re.search(what, ran.out) and re.search(remedy, ran.out)


def test_a_plugin_that_does_not_start(run, monkeypatch, tmp_path):
    plugin = tmp_path / "jax_plugins" / "broken"
    plugin.mkdir(parents=True)
    (plugin / "__init__.py").write_text("def initialize(): raise OSError('no libhip.so')")
    monkeypatch.syspath_prepend(tmp_path)
    report = json.loads(run("doctor", "--json").out)
    assert report["devices"][0]["platform"] == "cpu"
    assert any("no libhip.so" in problem["what"] for problem in report["problems"])


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os; os.kill(os.getpid(), 7)", "it printed nothing (signal 7)"),
        ("import no_such_jax", "No module named 'no_such_jax' (exit code 1)"),
        ("import time; time.sleep(100)", "it did not start within 1 s"),
    ],
    ids=["bus error", "import", "hangs"],
)
def test_a_jax_that_ends_the_process(monkeypatch, program, reason):
    monkeypatch.setattr(machine, "_PROGRAM", program)
    monkeypatch.setattr(machine, "START_LIMIT", 1.0)
    facts = machine.gather()
    assert facts.failure.endswith(reason) and facts.devices == []
    assert any(reason in problem.what for problem in problems(facts))


def test_a_damaged_library_is_a_problem(run, monkeypatch, cpp_folder, tmp_path):
    built = build.find_complete(Path(cpp_folder))
    (tmp_path / built.name).write_bytes(built.read_bytes()[:5000])
    monkeypatch.setenv("ROCMFORGE_CPP_FOLDER", str(tmp_path))
    report = json.loads(run("doctor", "--json").out)
    assert re.match(
        "xla: the C.. library .* is damaged: .* 5000 bytes", report["operations"]["matmul"]
    )
    (problem,) = report["problems"]
    assert "damaged" in problem["what"] and problem["remedy"] == "rocmforge-jax build-native"


def test_text_names_every_version_and_device(run):
    out = run("doctor").out
    assert all(word in out for word in ("python", "jaxlib", "flax", "matmul", "cpu", "problems"))


def test_a_healthy_machine_has_no_problem():
    assert told() == []


@pytest.mark.parametrize(("jax", "rocm"), [("0.10.2", "ROCm 7.2 "), ("0.12.0", "ROCm 7.14 ")])
def test_an_amd_gpu_that_jax_does_not_see(jax, rocm):
    (problem,) = told(amd=True, versions={"jax": jax})
    assert (
        problem.certain
        and "AMD GPU" in problem.what
        and "rocmforge-jax[rocm]" in problem.remedy
        and rocm in problem.remedy
        and "rocmforge-jax[rocm10]" in problem.remedy
    )


def test_an_nvidia_gpu_that_jax_does_not_see():
    (problem,) = told(nvidia=True)
    assert problem.certain and "rocmforge-jax[cuda]" in problem.remedy


def test_a_plugin_of_another_version():
    (problem,) = told(
        versions={"jax": "0.12.0", "jax-rocm7-pjrt": "0.10.2", "jax-rocm7-plugin": "0.12.0.1"}
    )
    assert problem.certain and "jax-rocm7-pjrt is 0.10.2, jax is 0.12.0" in problem.what
    (problem,) = told(versions={"jax": "0.12.0", "jax-rocm10-pjrt": "0.11.2"})
    assert problem.certain and "jax-rocm10-pjrt is 0.11.2, jax is 0.12.0" in problem.what


def test_plugins_of_two_generations_of_rocm():
    (problem,) = told(
        versions=dict.fromkeys(("jax", "jax-rocm7-plugin", "jax-rocm10-plugin"), "0.12.0")
    )
    assert problem.certain and "both" in problem.what and "uninstall" in problem.remedy


@pytest.mark.parametrize("version", ["0.10.2.post1", "0.10.1"])
def test_a_plugin_of_the_same_release_fits(version):
    plugin = {"jax-rocm7-pjrt": version, "jax-rocm7-plugin": version}
    assert (
        told(versions={"jax": "0.10.2"} | plugin, devices=gpu("gfx942", "rocm"))[0].certain is False
    )


#: Warning of JAX -> words of its remedy, and words that it must not contain.
CAUSES = {
    "xla_rocm7.initialize(): No AMD GPUs were found": (
        ("amdgpu", "/sys/class/kfd", "render", "video", "--device=/dev/kfd --device=/dev/dri"),
        "uninstall",
    ),
    "xla_rocm7.initialize(): libamdhip64.so.7: cannot open shared object file: No such file": (
        ("ROCm 7.14", "libamdhip64.so.7", "LD_LIBRARY_PATH", "/opt/rocm/lib"),
        "uninstall",
    ),
    "xla_rocm7.initialize(): librccl.so.1: undefined symbol: hipFoo": (
        ("ROCm 7.14", "for which the plugin was made"),
        "uninstall",
    ),
    "libcuda.so.1: cannot open shared object file": (("NVIDIA driver", "libcuda.so.1"), "ROCm"),
    "libcudnn.so.9: cannot open shared object file": (("libcudnn.so.9", "[cuda]"), "ROCm"),
    "libfoo.so: cannot open shared object file": (("libfoo.so", "LD_LIBRARY_PATH"), "ROCm"),
    "CUDA backend failed to initialize: no supported devices found for platform CUDA": (
        ("nvidia-smi", "--gpus all"),
        "kfd",
    ),
    "xla_cuda13: jaxlib 0.12.0 is newer than and incompatible with 0.10.2": (
        ("pip uninstall", "[cuda]"),
        "[rocm]",
    ),
}


@pytest.mark.parametrize("warning", CAUSES)
def test_each_cause_has_its_own_remedy(warning):
    (problem,) = told(logged=(warning,))
    words, unwanted = CAUSES[warning]
    assert warning in problem.what and all(word in problem.remedy for word in words)
    assert unwanted not in problem.remedy


def test_a_library_that_jax_itself_does_not_find():
    (problem,) = told(
        failure="ImportError: librccl.so.1: cannot open shared object file", devices=[]
    )
    assert "librccl.so.1" in problem.remedy and "ROCm 7.14" in problem.remedy


def test_the_cause_behind_jax_platforms_is_found(run, monkeypatch, tmp_path):
    plugin = tmp_path / "jax_plugins" / "xla_rocm7"
    plugin.mkdir(parents=True)
    (plugin / "__init__.py").write_text("def initialize(): raise ValueError('No AMD GPUs')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "rocm")
    report = json.loads(run("doctor", "--json").out)
    assert report["devices"] == []
    remedy = next(one["remedy"] for one in report["problems"] if "No AMD GPUs" in one["what"])
    assert "amdgpu" in remedy


@pytest.mark.parametrize(
    ("platforms", "words"),
    [
        ("rocm", (".[rocm]", ".[rocm10]", "unset JAX_PLATFORMS, which is 'rocm'")),
        ("cuda", (".[cuda]",)),
        ("amd", ("cpu, gpu, cuda, rocm, tpu", "'amd'")),
    ],
)
def test_a_platform_without_its_plugin(platforms, words):
    failure = f"Unable to initialize backend '{platforms}'"
    (problem,) = told(failure=failure, devices=[], environment={"JAX_PLATFORMS": platforms})
    assert all(word in problem.remedy for word in words)


def packages(jax, *names, **others):
    """The versions of an environment with packages of JAX's version, and with others."""
    others = {name.replace("_", "-"): version for name, version in others.items()}
    return dict.fromkeys(("jax", *names), jax) | others


@pytest.mark.parametrize(
    ("versions", "what", "remedy"),
    [
        (
            packages("0.10.2", "jax-rocm7-plugin"),
            "without jax-rocm7-pjrt",
            "jax-rocm7-pjrt==0.10.*",
        ),
        (
            packages("0.10.2", "jax-rocm7-plugin", "jax-cuda13-plugin"),
            "jax-rocm7 and jax-cuda13",
            "pip uninstall jax-cuda13-pjrt jax-cuda13-plugin",
        ),
        (packages("0.12.0", rocm_sdk_core="0.1"), "rocm-sdk-core 0.1", "uninstall rocm-sdk-core"),
        (packages("0.12.0", "jax-rocm7-pjrt", "jax-rocm7-plugin"), "finds no AMD GPU", "amdgpu"),
        (packages("0.12.0", "jax-cuda13-pjrt", "jax-cuda13-plugin"), "no NVIDIA GPU", "nvidia-smi"),
        (packages("0.10.2", jax_rocm10_plugin="0.12.0"), "rocm10-plugin is 0.12.0", "Python 3.12"),
        (packages("0.10.2", jax_rocm60_pjrt="0.4.35"), "0.4.35", "pip uninstall jax-rocm60-pjrt"),
    ],
)
def test_packages_that_do_not_work(versions, what, remedy):
    (problem,) = told(versions=versions)
    assert problem.certain and what in problem.what and remedy in problem.remedy
    assert "rocm10-plugin==0.10" not in problem.remedy


def test_packages_of_amds_own_index_are_no_placeholders():
    assert told(versions=packages("0.12.0", rocm="7.14.0", rocm_sdk_core="7.14.0")) == []


def test_a_gpu_that_jax_was_told_not_to_use():
    (problem,) = told(amd=True, environment={"JAX_PLATFORMS": "cpu"})
    assert "JAX_PLATFORMS is 'cpu'" in problem.what and "unset" in problem.remedy


def test_variables_that_choose_gpus_are_shown(run, monkeypatch):
    variables = {"HIP_VISIBLE_DEVICES": "", "HSA_OVERRIDE_GFX_VERSION": "11.0.0"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    out = run("doctor").out
    assert re.search("HIP_VISIBLE_DEVICES +.empty.", out)
    assert re.search("HSA_OVERRIDE_GFX_VERSION +11.0.0", out)


def test_the_exit_code_says_whether_there_are_problems(run, monkeypatch):
    monkeypatch.setattr(doctor, "problems", lambda facts: [Problem("broken", "mend it")])
    assert run("doctor").code == run("doctor", "--json").code == 1
    monkeypatch.setattr(doctor, "problems", lambda facts: [Problem("slow", "wait", False)])
    assert run("doctor").code == 0


def test_rocm_names_each_flag_that_is_not_set():
    flags = [
        "xla_gpu_enable_command_buffer",
        "xla_gpu_autotune_level",
        "xla_gpu_enable_triton_gemm",
    ]
    remedies = " ".join(problem.remedy for problem in told(devices=gpu("gfx942", "rocm")))
    assert all(flag in remedies for flag in flags) and "PREALLOCATE" in remedies
    remedies = " ".join(
        problem.remedy
        for problem in told(
            devices=gpu("gfx942", "rocm"), xla_flags=f"--{flags[0]}= --{flags[2]}=false"
        )
    )
    assert [flag in remedies for flag in flags] == [False, True, False]


def test_rdna2_is_refused_by_newer_jax_only():
    def refused(jax):
        return any(
            "gfx103x" in problem.what
            for problem in told(devices=gpu("gfx1030", "rocm"), versions={"jax": jax})
        )

    assert refused("0.12.0") and not refused("0.10.2")


def test_preallocation_is_no_news_to_those_who_set_it():
    (problem,) = told(devices=gpu("NVIDIA H200"))
    assert not problem.certain and "75 %" in problem.what
    assert (
        told(devices=gpu("NVIDIA H200"), environment={"XLA_PYTHON_CLIENT_PREALLOCATE": "false"})
        == []
    )
