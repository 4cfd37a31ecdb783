"""A model on eight devices, on meshes with automatic and with explicit axes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.cpp.conftest import NEEDS_CPP

pytestmark = [pytest.mark.core, NEEDS_CPP]
PROGRAM = Path(__file__).with_name("meshes.py")


def test_a_batch_is_split(in_cpp):
    """A child process, because the number of devices is fixed when JAX starts."""
    command = [sys.executable, "-c", f"exec(open({str(PROGRAM)!r}).read())"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    cases = json.loads(done.stdout.splitlines()[-1])
    assert cases.pop("generates")
    for name, case in cases.items():
        # Kernels for few and for many rows sum in another order, and a number whose last bit
        # differs may round to another one of 15 bits.
        assert case["difference"] < 2e-4, (name, case)
        if name.startswith("forward"):
            assert (case["collectives"], case["split"]) == ({}, ["data"]), name
        else:
            assert case["collectives"] == {"all-reduce": 1}, name
