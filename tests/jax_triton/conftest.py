"""Triton and jax-triton, which `make test-jax-triton` installs into a folder of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import as_users_have_it
from tests.pallas_kernels.conftest import ggml_blocks, matrix, packed
from tests.rocm.conftest import ROOT, plugin, write_records

__all__ = ["ggml_blocks", "matrix", "packed", "plugin"]


def pytest_addoption(parser):
    parser.addoption(
        "--jax-triton-results",
        type=Path,
        metavar="FILE",
        help="write what was compiled to this file, a JSON line each",
    )


@pytest.fixture(scope="session")
def triton_folder() -> Path:
    folder = Path(os.environ.get("ROCMFORGE_JAX_TRITON") or Path(sys.prefix) / "jax-triton")
    if not (folder / "triton").is_dir():
        pytest.fail(
            f"no triton in {folder}: run `make test-jax-triton`, which installs it there, or set"
            " ROCMFORGE_JAX_TRITON"
        )
    return folder.resolve()


@pytest.fixture(scope="session")
def interpreter(triton_folder):
    """Triton's interpreter, which a process has or has not."""
    sys.path.append(str(triton_folder))  # behind the installed packages
    os.environ["TRITON_INTERPRET"] = "1"
    from tests.jax_triton import interpreter

    patch = pytest.MonkeyPatch()
    interpreter.emulate_instructions(patch)
    yield interpreter
    patch.undo()


@pytest.fixture(scope="session")
def compiled(triton_folder, plugin, request):
    """compiled(target, programs): the records of `tests.jax_triton.compile`, by program and way."""
    records = []

    def run(target, programs):
        command = [sys.executable, "-m", "tests.jax_triton.compile"]
        command += [str(plugin), str(triton_folder), target, *programs]
        environment = as_users_have_it() | {
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "JAX_ENABLE_COMPILATION_CACHE": "false",
            "TRITON_INTERPRET": "0",
        }
        ran = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        assert ran.returncode == 0
        found = [json.loads(line) for line in ran.stdout.splitlines()]
        records.extend(found)
        return {tuple(record["program"].rsplit(" ", 1)): record for record in found}

    yield run
    if path := request.config.getoption("--jax-triton-results", default=None):
        write_records(path, records)
