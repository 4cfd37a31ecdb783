"""Measures the time to open files.

    python benchmarks/opening.py FILE...

Each FILE is a GGUF file with a tokenizer. Each number is the median of 9 runs with the file in the
page cache. Appends one line per file to benchmarks/results/opening.jsonl.

The goals for a vocabulary of 152,000 tokens are 80 ms to open the file, 0.25 s to read all tokens
and merges, and 1 s to make the tokenizer.
"""

import argparse
import datetime
import json
import platform
import statistics
import time
from pathlib import Path

from rocmforge_jax.gguf import open_gguf
from rocmforge_jax.text import tokenizer_from_metadata

RESULTS = Path(__file__).parent / "results" / "opening.jsonl"
REPEATS = 9


def seconds(call) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def read_vocabulary(path):
    metadata = open_gguf(path).metadata
    return [
        metadata.get(f"tokenizer.ggml.{name}")
        for name in ("tokens", "merges", "scores", "token_type")
    ]


def measure(path: Path) -> dict:
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "file": path.name,
        "bytes": path.stat().st_size,
        "tokens": len(open_gguf(path).metadata["tokenizer.ggml.tokens"]),
        "open_seconds": seconds(lambda: open_gguf(path)),
        "vocabulary_seconds": seconds(lambda: read_vocabulary(path)),
        "tokenizer_seconds": seconds(lambda: tokenizer_from_metadata(open_gguf(path).metadata)),
        "python": platform.python_version(),
        "processor": processor(),
    }


def processor() -> str:
    """The processor's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    for path in parser.parse_args().files:
        line = json.dumps(measure(path))
        with RESULTS.open("a") as results:
            print(line, file=results)
        print(line)
