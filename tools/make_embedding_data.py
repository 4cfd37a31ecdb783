"""Makes tests/data/embeddings.npz: llama.cpp's vectors of the encoders of the tests.

    python -m tools.make_embedding_data ORACLE

ORACLE is the program of tools/llama_cpp_oracle.cc. For each file there are the pooled vectors of
all texts, and the state of each token of the longest text, or its score where it has no states.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.models import encoder_files

DATA = Path(__file__).resolve().parents[1] / "tests" / "data" / "embeddings.npz"


def embed(oracle: str, file: Path, texts: list[list[int]], **options) -> np.ndarray:
    """Returns llama.cpp's vectors of texts, float32."""
    asked = json.dumps({"ids": texts, **options})
    ran = subprocess.run(
        [oracle, file, "embed"], input=asked, capture_output=True, check=True, text=True
    )
    return np.array(json.loads(ran.stdout), np.float32)


def main():
    """Writes every file and stores what llama.cpp computes of it."""
    (oracle,) = sys.argv[1:]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in encoder_files.FILES:
            file, texts = Path(folder) / "encoder.gguf", encoder_files.texts()
            encoder_files.write(name, file)
            found[name] = embed(oracle, file, texts)
            found[f"{name}, tokens"] = embed(oracle, file, texts[1:2], pooling=0)[0]
    np.savez_compressed(DATA, **found)
    print(f"{DATA.name}: {len(found)} arrays, {DATA.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
