"""Makes tests/data/embeddings.npz: llama.cpp's vectors for the encoders of the tests.

    python -m tools.make_embedding_data ORACLE

ORACLE is the compiled tools/llama_cpp_oracle.cc. For each encoder, the file contains the pooled
vectors of all texts (scores for rerankers), and the unpooled states of the second text's tokens.
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
    """Returns llama.cpp's vectors for texts, float32.

    Args:
        oracle: The path of the oracle program.
        file: The GGUF file.
        texts: The token ids of each text.
        **options: Other fields of the oracle's request, such as "pooling".
    """
    asked = json.dumps({"ids": texts, **options})
    ran = subprocess.run(
        [oracle, file, "embed"], input=asked, capture_output=True, check=True, text=True
    )
    return np.array(json.loads(ran.stdout), np.float32)


def main():
    """Writes a GGUF file for every encoder and stores the vectors that llama.cpp computes."""
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
