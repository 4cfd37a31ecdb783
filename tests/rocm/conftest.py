"""XLA's ROCm compiler as a fixture: it compiles programs in a process of its own, one for each
target and kind of program.
"""

import datetime
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import as_users_have_it

ROOT = Path(__file__).resolve().parents[2]


def pytest_addoption(parser):
    parser.addoption(
        "--rocm-results",
        type=Path,
        metavar="FILE",
        help="write what was compiled to this file, a JSON line each",
    )


@pytest.fixture(scope="session")
def plugin() -> Path:
    """The shared library of XLA's ROCm plugin, below ROCMFORGE_ROCM_PLUGIN or the folder `rocm7` of
    this environment.
    """
    folder = Path(os.environ.get("ROCMFORGE_ROCM_PLUGIN") or Path(sys.prefix) / "rocm7")
    found = sorted(folder.resolve().glob("jax_plugins/xla_rocm*/xla_rocm_plugin.so"))
    if not found:
        pytest.fail(
            f"no ROCm plugin below {folder}: run `make test-rocm`, which installs it there, or set"
            " ROCMFORGE_ROCM_PLUGIN"
        )
    return found[0]


@pytest.fixture(scope="session")
def compiled(plugin, request):
    """compiled(target, names): the records of these programs by name, see `compiler.compile_for`.

    "error" in one that failed.
    """
    records = []

    @functools.cache
    def compiled(target: str, names: tuple[str, ...]) -> dict[str, dict]:
        command = [sys.executable, "-m", "tests.rocm.compile", str(plugin), target, *names]
        # Programs read from the compilation cache dump nothing.
        environment = as_users_have_it() | {
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "JAX_ENABLE_COMPILATION_CACHE": "false",
        }
        ran = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        found = {record["program"]: record for record in map(json.loads, ran.stdout.splitlines())}
        records.extend(found.values())
        died = {"error": f"the compiling process ended with {ran.returncode} before it"}
        return {name: found.get(name, died) for name in names}

    yield compiled
    if path := request.config.getoption("--rocm-results", default=None):
        write_records(path, records)


def write_records(path: Path, records: list[dict]) -> None:
    """Add the records to a file.

    They replace older ones of the same program, target and version of jax.
    """

    def key(record):
        return (record["jax"], record["program"], record["target"])

    old = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    merged = {
        key(record): record for record in [*old, *({"date": today} | record for record in records)]
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(merged[k]) + "\n" for k in sorted(merged)))
