"""Speed on the CPU: `python benchmarks/cpu.py [--models demo qwen2.5-0.5b:q4_0 ...]`.

Each measurement is `rocmforge-jax bench` in a process of its own; its JSON object, with the date, becomes a line of
benchmarks/results/cpu.jsonl. Files with the shapes of real models and random weights are made where there is none yet.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import synthetic

from rocmforge_jax.gguf import open_gguf
from rocmforge_jax.locate import resolve

RESULTS = Path(__file__).parent / "results" / "cpu.jsonl"
MODELS = ("demo", "qwen2.5-0.5b:q4_0", "qwen2.5-0.5b:q5_1", "qwen2.5-0.5b:q8_0")
PROMPTS, TOKENS, REPEATS = (128, 512), 128, 5


def model_file(model: str, folder: Path) -> Path:
    """The file of "demo", of a path, or of "shape:type", made if need be."""
    shape, _, type_name = model.partition(":")
    if not type_name:
        return resolve(model)
    path = folder / f"synthetic-{shape}-{type_name}.gguf"
    if not path.exists():
        print(f"making {path}", file=sys.stderr)
        folder.mkdir(parents=True, exist_ok=True)
        synthetic.write(shape, type_name, path)
    return path


def measure(path: Path, prompt_tokens: int) -> dict:
    """One run of `rocmforge-jax bench`, with the date (UTC)."""
    words = [path, "--prompt-tokens", prompt_tokens, "--tokens", TOKENS, "--repeats", REPEATS, "--json"]
    command = [sys.executable, "-m", "rocmforge_jax", "bench", *map(str, words)]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    return {"date": datetime.datetime.now(datetime.UTC).date().isoformat()} | json.loads(ran.stdout.splitlines()[-1])


def context_length(path: Path) -> int:
    gguf = open_gguf(path)
    return gguf.metadata[f"{gguf.architecture}.context_length"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="MODEL", help="demo, SHAPE:TYPE or a file (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("build/benchmarks"), help="where made files are kept (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file to append to (default: %(default)s)")
    options = parser.parse_args()
    for model in options.models:
        path = model_file(model, options.folder)
        for prompt_tokens in PROMPTS:
            if prompt_tokens + TOKENS >= context_length(path):
                print(f"{model}: a prompt of {prompt_tokens} tokens does not fit its context of {context_length(path)}", file=sys.stderr)
                continue
            line = json.dumps(measure(path, prompt_tokens))
            options.results.parent.mkdir(parents=True, exist_ok=True)
            with options.results.open("a") as results:
                print(line, file=results)
            print(line)


if __name__ == "__main__":
    main()
