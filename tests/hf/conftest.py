"""torch, transformers and peft, which `make test-hf` installs into a folder of its own."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(os.environ.get("ROCMFORGE_HF") or Path(sys.prefix) / "hf")


def _installed(package):
    if not (FOLDER / package).is_dir():
        pytest.fail(f"no {package} in {FOLDER}: remove it and run `make test-hf`, which makes it")


@pytest.fixture(scope="session")
def transformers():
    _installed("transformers")
    sys.path.append(str(FOLDER))  # behind the installed packages
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    import transformers

    torch.set_num_threads(1)  # for such small models more threads take longer
    return transformers


@pytest.fixture(scope="session")
def peft(transformers):
    _installed("peft")
    import peft

    return peft


@pytest.fixture(scope="session")
def loaded(transformers):
    """loaded(folder, dtype="float32"): the model that transformers loads."""
    import torch

    def load(folder, dtype="float32"):
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation="eager"
        ).eval()

    return load


@pytest.fixture(scope="session")
def logits_of(transformers):
    """logits_of(model, ids): the logits of a model of theirs, float32 in NumPy."""
    import torch

    def compute(model, ids):
        with torch.no_grad():
            return model(torch.tensor(np.asarray(ids).tolist())).logits.float().numpy()

    return compute
