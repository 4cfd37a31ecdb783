"""Measures llama.cpp on the same GPU and shapes as gpu_models.py.

    python benchmarks/gpu_llama_cpp.py FOLDER [--mixes Q4_0 Q4_K_M ...]

FOLDER contains llama-bench and llama-batched-bench, built with -DGGML_CUDA=ON (or HIP). Files with
random weights are written, one at a time, each of several GB. Appends one line per file to
benchmarks/results/gpu_llama_cpp.jsonl, with the same names of measurements as gpu_models.py.
"""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import synthetic

RESULTS = Path(__file__).parent / "results" / "gpu_llama_cpp.jsonl"
MIXES = ("Q4_0", "Q4_K_M", "Q5_0", "Q6_K", "Q8_0")


def measure(folder: Path, file: Path) -> dict:
    """Tokens per second: all layers on the GPU, flash attention, a KV cache of float16."""

    def bench(*args):
        return _lines(
            [folder / "llama-bench", "-m", file, "-ngl", 99, "-fa", 1, "-o", "jsonl", *args]
        )

    lines = bench("-p", "512,2048", "-n", 128, "-r", 3) + bench(
        "-p", 0, "-n", 128, "-d", 4096, "-r", 3
    )
    result = {"device": lines[0]["gpu_info"], "llama_cpp": lines[0]["build_commit"]}
    for line in lines:
        tokens = line["n_prompt"]
        name = (
            f"prefill_{tokens}"
            if tokens
            else f"decode_at_{line['n_depth']}"
            if line["n_depth"]
            else "decode"
        )
        result[f"{name}_tokens_per_s"] = line["avg_ts"]
    batches = [
        "-ngl",
        99,
        "-fa",
        "on",
        "-npp",
        16,
        "-ntg",
        128,
        "-npl",
        "8,32",
        "-c",
        32 * 160,
        "--output-format",
        "jsonl",
    ]
    for line in _lines([folder / "llama-batched-bench", "-m", file, *batches]):
        result[f"decode_batch_{line['pl']}_tokens_per_s"] = line["speed_tg"]
    return result


def _lines(command) -> list[dict]:
    """What a program prints as JSON, a line each."""
    out = subprocess.run(
        list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where llama-bench and llama-batched-bench are")
    parser.add_argument(
        "--shape",
        default="llama-3.1-8b",
        choices=[*synthetic.SHAPES, *synthetic.hybrid_shapes.SHAPES],
    )
    parser.add_argument("--mixes", nargs="+", default=MIXES, metavar="MIX")
    parser.add_argument(
        "--temporary", type=Path, help="where to write the files (default: the system's place)"
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="the file to append to (default: %(default)s)"
    )
    options = parser.parse_args()
    for mix in options.mixes:
        with tempfile.TemporaryDirectory(dir=options.temporary) as folder:
            print(f"writing {options.shape} {mix} ...", file=sys.stderr, flush=True)
            synthetic.write(options.shape, mix, file := Path(folder) / "model.gguf")
            result = measure(options.folder, file)
        line = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "shape": options.shape,
            "mix": mix,
        } | result
        print(json.dumps(line), flush=True)
        options.results.parent.mkdir(parents=True, exist_ok=True)
        with options.results.open("a") as results:
            print(json.dumps(line), file=results)


if __name__ == "__main__":
    main()
