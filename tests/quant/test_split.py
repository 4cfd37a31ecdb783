"""Products with matrices that the devices of a mesh share: see `split_products`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PROGRAM = Path(__file__).with_name("split_products.py")


@pytest.fixture(scope="module")
def found():
    """A child process, because the number of devices is fixed when JAX starts."""
    command = [sys.executable, "-c", f"exec(open({str(PROGRAM)!r}).read())"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_products_gradients_and_rows_are_those_of_one_device(found):
    assert len(found) == 15
    for name, case in found.items():
        assert max(case["differences"]) < 1e-6 and case["dense"] == 0, (name, case)


def test_only_split_inputs_are_summed(found):
    for name, case in found.items():
        expected = {"all-reduce": 1} if name.endswith("columns") else {}
        assert case["collectives"] == expected, name
