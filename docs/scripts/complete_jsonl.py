"""Completes the prompts of a JSONL file: complete_jsonl.py MODEL IN.jsonl OUT.jsonl [MAX_TOKENS]

Lines of IN are {"prompt": "..."}, those of OUT have "completion" too. A stopped run goes on.
"""

import json
import sys
from itertools import islice
from pathlib import Path

from tqdm import tqdm

import rocmforge_jax as rf

BATCH = 8  # prompts that are computed together


def whole_lines(path: Path) -> int:
    """Counts the lines of a file. A last one that was not finished is cut off."""
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    path.write_bytes(whole)
    return whole.count(b"\n")


def main(model: str, source: Path, target: Path, max_tokens: int) -> None:
    rows = [json.loads(line) for line in source.read_text().splitlines() if line.strip()]
    done = whole_lines(target)
    lm, left = rf.load(model), iter(rows[done:])
    with target.open("a") as file, tqdm(total=len(rows), initial=done, unit="prompt") as bar:
        while batch := list(islice(left, BATCH)):
            answers = lm.generate([row["prompt"] for row in batch], max_tokens=max_tokens, seed=0)
            for row, answer in zip(batch, answers):
                print(json.dumps(row | {"completion": answer.text}), file=file, flush=True)
            bar.update(len(batch))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int((*sys.argv[4:], 64)[0]))
