"""Makes tests/data, the part of the reference data that is in the repository.

    python tools/make_test_data.py ../shared/reference

The files have the layout of the reference folder, so the tests read both in the same way. Models,
logits and the vocabulary are copied unchanged. Of the blocks, the first row of each type is copied.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np

DATA = Path(__file__).resolve().parents[1] / "tests" / "data"
#: Two small files of two architectures; together they use Q2_K, Q4_K, Q5_K, Q6_K and IQ2_XS.
MODELS = ("qwen2.Q4_K_M", "llama-gqa.IQ2_XS")
VOCABULARY = "ggml-vocab-llama-spm.gguf"
#: The types that `formats.quantize` supports. Their tests need the numbers before quantisation.
QUANTIZED_HERE = ("f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "mxfp4")


def copy_blocks(reference: Path, data: Path):
    """Copies one row of 1024 elements of each type: its bytes and the values that ggml reads."""
    data.mkdir(parents=True, exist_ok=True)
    for path in sorted(reference.glob("*.npz")):
        with np.load(path) as arrays:
            kept = {
                name: array[:1]
                for name, array in arrays.items()
                if name != "source" or path.stem in QUANTIZED_HERE
            }
        np.savez_compressed(data / path.name, **kept)
    shutil.copyfile(reference / "index.json", data / "index.json")


def copy_models(reference: Path, data: Path):
    """Copies the models, their logits and their entries in the index."""
    data.mkdir(parents=True, exist_ok=True)
    for name in MODELS:
        for suffix in ("gguf", "npy"):
            shutil.copyfile(reference / f"{name}.{suffix}", data / f"{name}.{suffix}")
    index = json.loads((reference / "index.json").read_text())
    index["files"] = {name: index["files"][name] for name in MODELS}
    (data / "index.json").write_text(json.dumps(index) + "\n")


def copy_vocabulary(reference: Path, data: Path):
    """Copies the vocabulary, llama.cpp's test texts and llama.cpp's token ids of these texts."""
    data.mkdir(parents=True, exist_ok=True)
    for suffix in ("", ".inp", ".out"):
        shutil.copyfile(reference / (VOCABULARY + suffix), data / (VOCABULARY + suffix))


def main():
    """Replaces the folders and prints the size of all data."""
    parser = argparse.ArgumentParser(description="make tests/data from the reference folder")
    parser.add_argument("reference", type=Path, help="the reference folder")
    reference = parser.parse_args().reference
    for folder in ("dequant", "models", "tokenizers"):
        shutil.rmtree(DATA / folder, ignore_errors=True)
    copy_blocks(reference / "dequant", DATA / "dequant")
    copy_models(reference / "models", DATA / "models")
    copy_vocabulary(reference / "tokenizers", DATA / "tokenizers")
    size = sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file())
    print(f"{DATA}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
