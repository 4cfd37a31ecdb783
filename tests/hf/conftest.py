"""torch and transformers, which `make test-hf` installs into a folder of its own."""

import os
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def transformers():
    folder = Path(os.environ.get("ROCMFORGE_HF") or Path(sys.prefix) / "hf")
    if not (folder / "transformers").is_dir():
        pytest.fail(f"no transformers in {folder}: run `make test-hf`, which installs it there")
    sys.path.append(str(folder))  # behind the installed packages
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    return transformers
