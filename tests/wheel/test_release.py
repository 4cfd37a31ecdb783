"""What `make wheel` makes computes in empty environments, without a compiler."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.wheel
VERSIONS = ("3.11", "3.12", "3.13")
PROGRAM = """
import rocmforge_jax as rf

lm = rf.load("demo")
print(lm.generate("ROMEO:", max_tokens=8, temperature=0).text)
"""


@pytest.fixture(scope="module")
def dist() -> Path:
    folder = os.environ.get("ROCMFORGE_DIST")
    if not folder:
        pytest.skip("ROCMFORGE_DIST names no folder: run make release-check")
    return Path(folder)


@pytest.fixture(scope="module")
def wheel(dist) -> Path:
    (found,) = dist.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def sdist(dist) -> Path:
    (found,) = dist.glob("*.tar.gz")
    return found


def interpreter(version: str) -> str:
    found = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    if program := shutil.which(f"python{version}") if not found else str(found[-1]):
        return program
    pytest.skip(f"no Python {version} here")


def test_the_wheel_is_for_every_python_of_old_systems(wheel):
    *_, python, abi, platform = wheel.stem.split("-")
    assert (python, abi) == ("py3", "none")
    glibc = [int(tag.split("_")[2]) for tag in platform.split(".") if "manylinux_2" in tag]
    assert glibc and min(glibc) <= 34


def test_the_wheel_has_one_library_and_its_sources(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert len([name for name in names if name.endswith(".so")]) == 1
    assert "rocmforge_jax/cpp/src/multiply.cc" in names
    assert "rocmforge_jax/demo/demo.gguf" in names
    assert not [name for name in names if name.startswith(("tests/", "tools/", "benchmarks/"))]


def test_the_source_distribution_is_the_whole_project(sdist):
    names = {name.partition("/")[2] for name in tarfile.open(sdist).getnames()}
    root = Path(__file__).parents[2]
    listed = subprocess.run(
        ["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True
    ).stdout.split()
    not_shipped = (".git", ".ci/", ".pre-commit-config.yaml")
    assert {name for name in listed if not name.startswith(not_shipped)} <= names


@pytest.fixture(scope="module", params=VERSIONS)
def installed(request, wheel, tmp_path_factory) -> Path:
    """The folder of programs of an empty environment with the wheel and nothing else."""
    folder = tmp_path_factory.mktemp(f"python{request.param}")
    subprocess.run([interpreter(request.param), "-m", "venv", folder], check=True)
    pip = [folder / "bin/python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, wheel], check=True)
    return folder / "bin"


def run(command, folder, **variables):
    """Runs a program without a compiler, in an empty folder of the user's."""
    environment = {"PATH": "", "HOME": str(folder), "JAX_PLATFORMS": "cpu", **variables}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done


def test_it_computes_in_cpp_without_a_compiler(installed, tmp_path):
    done = run([installed / "rocmforge-jax", "doctor", "--json"], tmp_path)
    assert json.loads(done.stdout)["operations"]["matmul"].startswith("cpp:")
    done = run([installed / "python", "-c", PROGRAM], tmp_path)
    assert done.stdout.strip() and "Traceback" not in done.stderr
    assert "build-native" not in done.stderr


def test_a_wheel_is_made_without_a_compiler_too(sdist, tmp_path):
    """It says what it lacks, and runs anywhere."""
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-v", "-w", tmp_path, sdist]
    environment = os.environ | {"CXX": "no-such-compiler"}
    done = subprocess.run(
        list(map(str, pip)), env=environment, capture_output=True, text=True, check=True
    )
    assert "made without the C++ library" in done.stdout + done.stderr
    (made,) = tmp_path.glob("*.whl")
    assert made.name.endswith("-py3-none-any.whl")
