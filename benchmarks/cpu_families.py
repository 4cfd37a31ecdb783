"""Compares decode and prefill of every kind of layer with llama.cpp on the CPU.

    python benchmarks/cpu_families.py FOLDER [--families qwen35 mamba2 ...]

FOLDER contains llama.cpp's llama-bench, built for this machine. For each family, a file is written
with the widths of a real model, few layers and random weights (`hybrid_shapes.py`). Both programs
then take turns at short runs. Only the best run of each program counts, because the machine may
have other load. Appends one line per family to benchmarks/results/cpu_families.jsonl.
"""

import argparse
import contextlib
import datetime
import json
import os
import subprocess
import tempfile
from pathlib import Path

import synthetic
from cpu import Worker
from cpu_goals import OURS, THEIRS
from opening import processor

from rocmforge_jax.cli.common import version

RESULTS = Path(__file__).parent / "results" / "cpu_families.jsonl"
#: Family -> the mix of types of its file; default Q4_K_M. "llama-bf16" is "llama" in another type.
MIXES = {"gemma4": "q4_0", "gpt-oss": "mxfp4_moe", "llama-f16": "f16", "llama-bf16": "bf16"}
FAMILIES = (
    "llama",
    "llama-f16",
    "llama-bf16",
    "gemma4",
    "qwen3moe",
    "gpt-oss",
    "qwen35",
    "qwen35moe",
    "lfm2",
    "mamba2",
    "granitehybrid",
    "nemotron_h",
    "falcon-h1",
    "deepseek2",
)
#: name -> tokens of the prompt and of the answer. The answer is timed; without one, the prompt is.
RUNS = {"decode_tokens_per_s": (16, 32), "prefill_256_tokens_per_s": (256, 0)}
#: Number of runs per turn.
RUNS_OF_TURN = 3
#: Options of llama-bench, tried in this order until it runs. Its AMX code with repacked weights has
#: no products for the stacks of latent attention, and some compilers generate wrong code for it.
OPTIONS = ([], ["--repack", "0"])


def of_llama_cpp(
    program: Path, file: Path, threads: int, prompt: int, tokens: int, *more
) -> list[float]:
    """Returns tokens per second of each run of a turn, none if llama-bench fails."""
    sizes = (0, tokens) if tokens else (prompt, 0)
    options = ["-t", threads, "-p", sizes[0], "-n", sizes[1], "-r", RUNS_OF_TURN, "-o", "jsonl"]
    command = [program, "-m", file, *options, *more]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(lines[-1])["samples_ts"] if lines else []


def of_ours(worker: Worker, prompt: int, tokens: int) -> float:
    """Returns tokens per second of one run of ours."""
    answer = worker.ask(prompt, tokens)
    return tokens / answer["rest_seconds"] if tokens else prompt / answer["first_seconds"]


def samples(worker: Worker, program: Path, file: Path, threads: int, repeats: int) -> dict:
    """Lets both programs take turns.

    Returns:
        name of a run -> package -> its samples, and the options of llama-bench.
    """
    found = {}
    for name, sizes in RUNS.items():
        of_ours(worker, *sizes)  # a warm-up: it compiles and touches all memory
        both, options = {OURS: [], THEIRS: []}, list(OPTIONS)
        for _ in range(repeats):
            both[OURS] += [of_ours(worker, *sizes) for _ in range(RUNS_OF_TURN)]
            while not (theirs := of_llama_cpp(program, file, threads, *sizes, *options[0])):
                if len(options) == 1:
                    raise SystemExit(f"llama-bench fails on {file.name}: {name}")
                options.pop(0)
            both[THEIRS] += theirs
        found[name] = both | {"llama_cpp_options": options[0]}
    return found


def measure(family: str, folder: Path, program: Path, threads: int, repeats: int) -> dict:
    """Returns everything about one family: samples, the best of each package, their ratio."""
    mix = MIXES.get(family, "q4_k_m")
    shape = f"{family.removesuffix(f'-{mix}')}-few"
    file = folder / f"{shape}-{mix}.gguf"
    if not file.exists():
        synthetic.write(shape, mix, file)
    before = os.getloadavg()[0]
    with contextlib.closing(Worker(OURS, file, threads, folder)) as worker:
        found = samples(worker, program, file, threads, repeats)
    best = {
        name: {package: max(run[package]) for package in (OURS, THEIRS)}
        for name, run in found.items()
    }
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "family": family,
        "shape": shape,
        "mix": mix,
        "bytes": file.stat().st_size,
        "device": f"{processor()}, {threads} threads",
        "load_average": [round(load, 2) for load in (before, os.getloadavg()[0])],
        "versions": {name: version(name) for name in ("rocmforge-jax", "jax", "jaxlib")}
        | {"llama.cpp": llama_cpp_version(program)},
        "ratios": {name: round(both[OURS] / both[THEIRS], 3) for name, both in best.items()},
        "best": best,
        "samples": found,
    }


def llama_cpp_version(program: Path) -> str:
    """Returns the first line that llama-bench prints about its version."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True)
    return (done.stdout + done.stderr).strip().splitlines()[0]


def row(result: dict) -> str:
    """Returns a line for reading: both numbers and the ratio of each run."""
    cells = [
        f"{both[OURS]:8.1f} {both[THEIRS]:8.1f} {result['ratios'][name]:5.2f}"
        for name, both in result["best"].items()
    ]
    return f"{result['family']:<14}" + "  |".join(cells)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", type=Path, metavar="FOLDER", help="where llama-bench is")
    parser.add_argument("--families", nargs="+", default=FAMILIES, choices=FAMILIES, metavar="NAME")
    parser.add_argument(
        "--folder", type=Path, help="where to keep made files (default: they are deleted)"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=2, help="turns (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file to append to")
    options = parser.parse_args()
    program = options.program / "llama-bench"
    if not program.exists():
        parser.error(f"{program} does not exist")
    print(f"{'':<14}decode: ours, llama.cpp, ratio | prefill 256: ours, llama.cpp, ratio")
    for family in options.families:
        with contextlib.ExitStack() as stack:
            folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            folder.mkdir(parents=True, exist_ok=True)
            result = measure(family, folder, program, options.threads, options.repeats)
        options.results.parent.mkdir(parents=True, exist_ok=True)
        with options.results.open("a") as results:
            print(json.dumps(result), file=results)
        print(row(result), flush=True)


if __name__ == "__main__":
    main()
