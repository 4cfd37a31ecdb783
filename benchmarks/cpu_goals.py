"""The performance goals on the CPU relative to llama.cpp, and the table that shows them."""

import dataclasses

OURS, THEIRS = "rocmforge_jax", "llama_cpp"
HEADER = ("", "ours", "llama.cpp", "ratio", "goal", "met")


@dataclasses.dataclass(frozen=True)
class Goal:
    """limit: of the ratio ours to theirs, or of ours alone where that is `absolute`.

    A lower bound of speeds, an upper bound of the rest.

    scale: what a number is divided by for reading. models: what the file's name has in it where the
    goal holds.
    """

    words: str
    limit: float | None = None
    faster_is_more: bool = False
    absolute: bool = False
    scale: float = 1.0
    digits: int = 1
    models: str = "synthetic"

    def met(self, value: float) -> bool:
        return value >= self.limit if self.faster_is_more else value <= self.limit

    def row(self, model: str, ours: float, theirs: float | None) -> tuple[str, ...]:
        """The cells under HEADER."""

        def number(value):
            return "-" if value is None else f"{value / self.scale:,.{self.digits}f}"

        ratio = ours / theirs if theirs else None
        value = ours / self.scale if self.absolute else ratio
        has_goal = self.limit is not None and value is not None and self.models in model
        goal = (
            f"{'>=' if self.faster_is_more else '<='} {self.limit:g}{'' if self.absolute else ' x'}"
            if has_goal
            else "-"
        )
        met = ("yes" if self.met(value) else "no") if has_goal else "-"
        return (
            self.words,
            number(ours),
            number(theirs),
            f"{ratio:.2f}" if ratio else "-",
            goal,
            met,
        )


#: Key of a result's medians -> its goal. The ideal for each is a ratio of 1; these limits are the
#: lower expectations for pure JAX.
GOALS = {
    "decode_tokens_per_s": Goal("decode, tokens/s", 0.6, faster_is_more=True),
    "prefill_128_tokens_per_s": Goal("prefill 128, tokens/s", 0.8, faster_is_more=True, digits=0),
    "prefill_512_tokens_per_s": Goal("prefill 512, tokens/s", 0.8, faster_is_more=True, digits=0),
    "first_token_seconds": Goal(
        "process start to first token, s", 1.5, digits=2, models="llama-3.2-1b"
    ),
    "answer_seconds": Goal("process start to 65th token, s", digits=2),
    "peak_rss_bytes": Goal("peak memory, MB", 1.3, scale=1e6, digits=0),
    "cold_first_token_seconds": Goal(
        "cold start to first token, s", 25, absolute=True, models="llama-3.2-1b"
    ),
    "cold_answer_seconds": Goal("cold start to 65th token, s"),
    "cold_peak_rss_bytes": Goal("cold start, peak memory, MB", scale=1e6, digits=0),
}


def rows(result: dict) -> list[tuple[str, ...]]:
    """The cells of one file's result, a row for each number that it has."""
    medians = result["medians"]
    return [
        goal.row(result["model"], medians[key][OURS], medians[key].get(THEIRS))
        for key, goal in GOALS.items()
        if key in medians
    ]


def text(result: dict) -> str:
    """One file's rows, aligned, under a line with the file and the versions."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    title = (
        f"{result['model']}: {result['device']}; medians of {result['repeats']}, of cold starts"
        f" {result['cold_starts']}; {versions}"
    )
    lines = [
        "".join([f"{cells[0]:<34}", *(f"{cell:>11}" for cell in cells[1:])])
        for cells in [HEADER, *rows(result)]
    ]
    return "\n".join([title, *lines, ""])
