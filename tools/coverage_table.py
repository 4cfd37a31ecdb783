"""Makes the table of docs/coverage.md from benchmarks/results.

`python -m tools.coverage_table docs/coverage.md` updates it. For every architecture, it shows the
error relative to llama.cpp (benchmarks/families.py) and the speed relative to llama.cpp
(benchmarks/cpu_families.py, gpu_models.py and gpu_llama_cpp.py).
"""

import collections
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from rocmforge_jax.models import ARCHITECTURES
from tools import marked_table

START = "<!-- table: made by tools/coverage_table.py -->"
RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
#: Title of a column -> the requested backend and activation mode.
CPU_COLUMNS = {
    "float32, XLA": ("xla", "float"),
    "15-bit activations, C++": ("auto", "int16"),
}
GPU_COLUMN = "float32, Pallas on a GPU"
#: Architecture -> the shape and the mix of types that benchmarks on GPUs use for it.
GPU_SHAPES = {
    "llama": ("llama-3.1-8b", "Q4_K_M"),
    "qwen3moe": ("qwen3-30b-a3b", "Q4_K"),
    "gpt-oss": ("gpt-oss-20b", "MXFP4_MOE"),
    "gemma4": ("gemma-4-12b", "Q4_0"),
    "qwen35": ("qwen3.5-9b", "Q4_K_M"),
    "qwen35moe": ("qwen3.5-35b-a3b", "Q4_K_M"),
}
DECODE = "decode_tokens_per_s"


def lines(name: str) -> list[dict]:
    """Reads a file of results, oldest first; returns an empty list if it does not exist."""
    path = RESULTS / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table() -> str:
    """Returns the table in Markdown, with one row per architecture."""
    head = ["architecture", "files", "tokens", "types", *CPU_COLUMNS, GPU_COLUMN, "speed"]
    measured = lines("families.jsonl")
    cpu, gpu = _cpu_speeds(lines("cpu_families.jsonl")), _gpu_speeds()
    rows = []
    for name in sorted(ARCHITECTURES):
        of_name = [one for one in measured if one["architecture"] == name]
        speeds = [speed for speed in (cpu.get(name), gpu.get(name)) if speed]
        rows.append([f"`{name}`", *_errors_of(of_name), ", ".join(speeds)])
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def renewed(page: str) -> str:
    """Returns the page with the current table: see `marked_table.renewed`."""
    return marked_table.renewed(page, START, table())


def _errors_of(measured: list[dict]) -> list[str]:
    """Returns the cells of an architecture from the number of files to the errors."""
    on_gpu = [one for one in measured if one["device"].startswith("NVIDIA")]
    on_cpu = [one for one in measured if one not in on_gpu]
    errors = [
        _worst(one for one in on_cpu if (one["backend"], one["activations"]) == how)
        for how in CPU_COLUMNS.values()
    ]
    errors.append(_worst(one for one in on_gpu if one["activations"] == "float"))
    types = sorted({name for one in measured for name in one["types"]} - {"F32"})
    files = {one["file"] for one in measured}
    tokens = sorted({one["tokens"] for one in measured})
    return [str(len(files) or ""), ", ".join(map(str, tokens)), " ".join(types), *errors]


def _worst(measured: Iterable[dict]) -> str:
    """Returns the largest error over the newest measurement of each file, or "" without any.

    The error of a file is the error of its median row, because rounding may change the choice of
    experts for single tokens.
    """
    newest = {one["file"]: one for one in measured}
    errors = [
        one[way]["median_row"]
        for one in newest.values()
        for way in ("in_one_go", "through_a_cache")
        if way in one
    ]
    return f"{max(errors):.1e}" if errors else ""


def _cpu_speeds(measured: list[dict]) -> dict[str, str]:
    """Returns the newest ratio of each make of processor, by family."""
    ratios = collections.defaultdict(dict)
    for one in measured:
        if DECODE in one["ratios"]:
            maker = re.match(r"\w+", one["device"])[0]
            ratios[one["family"]][maker] = f"{one['ratios'][DECODE]:.2f} ({maker} CPU)"
    return {family: ", ".join(of.values()) for family, of in ratios.items()}


def _gpu_speeds() -> dict[str, str]:
    def newest(name, **wanted):
        return {
            (one["shape"], one["mix"]): one[DECODE]
            for one in lines(name)
            if DECODE in one and all(one[key] == value for key, value in wanted.items())
        }

    ours = newest("gpu_models.jsonl", activations="int16")
    theirs = newest("gpu_llama_cpp.jsonl")
    return {
        name: f"{ours[shape] / theirs[shape]:.2f} (GPU)"
        for name, shape in GPU_SHAPES.items()
        if shape in ours and shape in theirs
    }


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(renewed(page.read_text()))
