"""Calls of the C++ library on several devices: each computes its share, and nothing is gathered."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.cpp.conftest import NEEDS_CPP

pytestmark = [pytest.mark.core, NEEDS_CPP]
PROGRAM = Path(__file__).with_name("partitioned.py")


def test_each_device_computes_its_share(in_cpp):
    """A child process, because the number of devices is fixed when JAX starts."""
    command = [sys.executable, "-c", f"exec(open({str(PROGRAM)!r}).read())"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    cases = json.loads(done.stdout.splitlines()[-1])
    assert all(case["difference"] < 1e-5 for case in cases.values()), cases
    found = {name: (case["collectives"], case["split"]) for name, case in cases.items()}
    assert found == {
        "rows": ({}, ["data"]),
        "outputs": ({}, [None, "model"]),
        "rows and outputs": ({}, ["data", "model"]),
        # A product needs a whole row of x: one gathering.
        "inputs": ({"all-gather": 1}, []),
        "outputs over both axes": ({}, [None, ["model", "data"]]),
        "rows of an odd weight": ({}, ["data"]),
        "norm and gate": ({}, ["data", "model"]),
        "batch": ({}, ["data"]),
        "heads": ({}, [None, None, "model"]),
        "batch and heads": ({}, ["data", None, "model"]),
    }
    assert [name for name, case in cases.items() if case["reused"]] == [
        "batch",
        "heads",
        "batch and heads",
    ]
