"""Makes the tables of measurements in docs/benchmarks.md from benchmarks/results.

`python benchmarks/table.py` updates them.
"""

import json
from pathlib import Path

from cpu_goals import GOALS, OURS, THEIRS

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
#: Title -> key of a result's medians. Cells contain our number, llama.cpp's and their ratio.
CPU = {
    "decode": "decode_tokens_per_s",
    "prefill 128": "prefill_128_tokens_per_s",
    "prefill 512": "prefill_512_tokens_per_s",
    "start, s": "first_token_seconds",
    "memory, MB": "peak_rss_bytes",
}
#: Title -> key of a result.
GPU = {
    "decode": "decode_tokens_per_s",
    "at depth 4096": "decode_at_4096_tokens_per_s",
    "batch 8": "decode_batch_8_tokens_per_s",
    "batch 32": "decode_batch_32_tokens_per_s",
    "prefill 512": "prefill_512_tokens_per_s",
    "prefill 2048": "prefill_2048_tokens_per_s",
}


def results(name: str, folder: Path = ROOT / "benchmarks" / "results") -> list[dict]:
    """What a file of results has, oldest first; nothing where there is no such file."""
    path = folder / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def cpu_table(measured: list[dict]) -> str:
    """One row for each device, model and version of jax, the newest numbers."""
    rows = {(one["device"], one["model"], one["versions"]["jax"]): one for one in measured}
    lines = [("device", "model", *CPU, "jax", "date")]
    for (device, model, jax), one in sorted(rows.items()):
        cells = [_compared(GOALS[key], one["medians"].get(key, {})) for key in CPU.values()]
        lines.append((device, model.removesuffix(".gguf"), *cells, jax, one["date"]))
    return _markdown(lines)


def cpu_families_table(measured: list[dict]) -> str:
    """Makes one row for each device and kind of layers, with the newest numbers."""
    rows = {(one["device"], one["family"]): one for one in measured}
    keys = {"decode": "decode_tokens_per_s", "prefill 256": "prefill_256_tokens_per_s"}
    lines = [("device", "layers of", "types", *keys, "jax", "date")]
    for (device, family), one in rows.items():
        cells = [_beside(one["best"][key][OURS], one["best"][key][THEIRS]) for key in keys.values()]
        lines.append(
            (device, family, one["mix"].upper(), *cells, one["versions"]["jax"], one["date"])
        )
    return _markdown(lines)


def gpu_table(measured: list[dict], llama_cpp: list[dict]) -> str:
    """Makes one row for each device, model, mode of activations and version of jax.

    A row has the newest numbers, from whichever runs have them, llama.cpp's newest for that device
    and model, and the ratio.
    """

    def model(one):
        return (one["device"], f"{one['shape']} {one['mix']}")

    rows, theirs = {}, {}
    for one in llama_cpp:
        theirs.setdefault(model(one), {}).update(one)
    for one in measured:
        row = rows.setdefault((*model(one), one["activations"], one["versions"]["jax"]), {})
        row |= {
            title: _beside(one[key], theirs.get(model(one), {}).get(key))
            for title, key in GPU.items()
            if key in one
        }
        row["date"] = one["date"]
    lines = [("device", "model", "activations", *GPU, "jax", "date")]
    for (*what, jax), row in sorted(rows.items()):
        lines.append((*what, *(row.get(title, "-") for title in GPU), jax, row["date"]))
    return _markdown(lines)


def _beside(ours: float, theirs: float | None) -> str:
    return (
        f"{ours:,.0f}" if theirs is None else f"{ours:,.0f} / {theirs:,.0f} ({ours / theirs:.2f})"
    )


def kernels_table(measured: list[dict]) -> str:
    """Makes a row for each type, on the device that was measured last.

    Columns are shares of the bandwidth of a large copy, at the largest and the smallest shape, for
    weights that no cache holds; and of that of a copy of as many bytes as the weight has.
    """
    measured = [
        one for one in measured if one["device"] == measured[-1]["device"] and "turns" not in one
    ]
    shapes = sorted(
        {tuple(one["shape"]) for one in measured}, key=lambda shape: shape[0] * shape[1]
    )
    ends = [
        (shape, "x".join(map(str, shape))) for shape in ([shapes[-1], shapes[0]] if shapes else [])
    ]
    columns = {
        f"{kernel}, {text}": (kernel, shape)
        for shape, text in ends
        for kernel in ("int16", "int8", "float", "dequantize", "copy")
    }
    rows = {}
    for one in measured:
        row = rows.setdefault((one["device"], one["type"], one["versions"]["jax"]), {})
        row[one["kernel"], tuple(one["shape"])] = f"{one['share_of_copy_bandwidth']:.2f}"
        row["date"] = one["date"]
    lines = [("device", "type", *columns, "jax", "date")]
    for (device, name, jax), row in rows.items():
        lines.append(
            (device, name, *(row.get(key, "-") for key in columns.values()), jax, row["date"])
        )
    return _markdown(lines)


def _compared(goal, medians: dict) -> str:
    """12 / 24 (0.50), or 12 where llama.cpp was not measured."""
    if OURS not in medians:
        return "-"
    _, ours, theirs, ratio, *_ = goal.row("", medians[OURS], medians.get(THEIRS))
    return f"{ours} / {theirs} ({ratio})" if THEIRS in medians else ours


def _markdown(lines: list[tuple]) -> str:
    if len(lines) == 1:
        return "Nothing has been measured yet."
    lines.insert(1, ("---",) * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


#: Name of a table in the marker lines -> its files of results, and the function that makes it.
TABLES = {
    "cpu": (["cpu.jsonl"], cpu_table),
    "cpu families": (["cpu_families.jsonl"], cpu_families_table),
    "gpu": (["gpu_models.jsonl", "gpu_llama_cpp.jsonl"], gpu_table),
    "kernels": (["gpu_kernels.jsonl"], kernels_table),
}


def renewed(page: str, tables: dict[str, str]) -> str:
    """The page with each table between its two marks. ValueError where a mark is missing."""
    for name, table in tables.items():
        start, end = (
            f"<!-- table {name}: made by benchmarks/table.py -->",
            f"<!-- end of table {name} -->",
        )
        before, found, rest = page.partition(start)
        _, ended, after = rest.partition(end)
        if not found or not ended:
            raise ValueError(f"the page needs a line {start!r} and, after it, a line {end!r}")
        page = f"{before}{start}\n{table}\n{end}{after}"
    return page


def current() -> dict[str, str]:
    return {name: table(*map(results, files)) for name, (files, table) in TABLES.items()}


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(), current()))
