"""Computes llama.cpp's logits for the small files of tests/models/synthetic_cases.py.

    python -m tools.make_family_logits ORACLE [NAME ...]

ORACLE is the compiled tools/llama_cpp_oracle.cc. With names, only these cases are recomputed.
Logits of cases that no longer exist are removed.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from tests.models.synthetic import IDS, LOGITS, ROWS, Case
from tests.models.synthetic_cases import CASES


def llama_cpp_logits(oracle: str, case: Case, step: bool = False) -> np.ndarray:
    """Returns llama.cpp's logits for a case, float32 [rows, V].

    Args:
        oracle: The path of the oracle program.
        case: The case.
        step: Whether llama.cpp decodes token by token, instead of all tokens at once.
    """
    asked = json.dumps({"ids": IDS.tolist(), "rows": ROWS, "step": step})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.gguf"
        case.write(path)
        run = subprocess.run(
            [oracle, path, case.what], input=asked, capture_output=True, text=True, check=False
        )
    if run.returncode:
        raise SystemExit(f"{case}: {run.stderr.strip() or f'exit status {run.returncode}'}")
    return np.array(json.loads(run.stdout), np.float32)


def main():
    """Writes the file of logits and prints its size."""
    parser = argparse.ArgumentParser(description="get logits of llama.cpp")
    parser.add_argument("oracle", help="the program of tools/llama_cpp_oracle.cc")
    parser.add_argument("names", nargs="*", help="cases to make anew; default: all")
    arguments = parser.parse_args()
    known = {}
    if arguments.names and LOGITS.exists():
        known = dict(np.load(LOGITS))
    for case in CASES:
        if not arguments.names or case.name in arguments.names:
            known[case.name] = llama_cpp_logits(arguments.oracle, case)
    np.savez_compressed(LOGITS, **{case.name: known[case.name] for case in CASES})
    print(f"{LOGITS}: {len(CASES)} cases, {LOGITS.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
