"""The table of measurements in README.md, made from benchmarks/results/*.jsonl: `python benchmarks/table.py` renews it."""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- table: made by benchmarks/table.py -->", "<!-- end of table -->"
COLUMNS = ("device", "model", "load, s", "prefill 128", "prefill 512", "decode", "jax", "date")


def results(folder: Path = ROOT / "benchmarks" / "results") -> list[dict]:
    """The speeds of models that were measured, oldest first within a file; the folder has other results too."""
    lines = [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
    return [line for line in lines if {"decode_tokens_per_s", "load_seconds"} <= set(line)]


def table(measured: list[dict]) -> str:
    """One row for each device, model and version of jax, the newest numbers, in Markdown. Prefill and decode in tokens/s."""
    rows = {}
    for one in measured:
        row = rows.setdefault((one["device"], one["model"], one["versions"]["jax"]), {})
        row |= {
            "load, s": f"{one['load_seconds']:.1f}",
            f"prefill {one['prompt_tokens']}": f"{one['prefill_tokens_per_s']:,.0f}",
            "date": one["date"],
        }
        if one["prompt_tokens"] == 128:  # later tokens read a longer cache
            row["decode"] = f"{one['decode_tokens_per_s']:,.0f}"
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    for (device, model, jax), row in sorted(rows.items()):
        row |= {"device": device, "model": model.removesuffix(".gguf"), "jax": jax}
        lines.append([row.get(column, "-") for column in COLUMNS])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else "Nothing has been measured yet: `make bench`."


def renewed(page: str, measured: list[dict]) -> str:
    """The page with a current table between its two marks. ValueError where a mark is missing."""
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"the page needs a line {START!r} and, after it, a line {END!r}")
    return f"{before}{START}\n{table(measured)}\n{END}{after}"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(renewed(readme.read_text(), results()))
