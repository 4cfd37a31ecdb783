"""Strict numbers for every test, and where the reference data is."""

import os
from pathlib import Path

import pytest

# Read by jax when it is first imported; tests of light imports need jax to stay unimported here.
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of ground truth: ROCMFORGE_REFERENCE, or ../shared/reference beside the checkout."""
    folder = Path(os.environ.get("ROCMFORGE_REFERENCE") or ROOT.parent / "shared" / "reference")
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder}: set ROCMFORGE_REFERENCE")
    return folder
