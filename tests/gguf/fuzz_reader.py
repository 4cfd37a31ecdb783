"""Fuzz the reader: `python tests/gguf/fuzz_reader.py --seconds 3600 --seed 0`.

With atheris, `... --atheris [libFuzzer options]`.

Nothing may come out but GGUFError and what a plain reader reads, in either byte order. Prints what
it ran, as one JSON object; a file that breaks the rule is kept as fuzz-failure.gguf in the working
directory.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

from plain_reader import check

NUMBERS = [
    0,
    1,
    3,
    4,
    7,
    8,
    9,
    12,
    13,
    31,
    32,
    33,
    42,
    63,
    64,
    2**16,
    2**21,
    2**31,
    2**32 - 1,
    2**32,
    2**61,
]
NUMBERS += [2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1]


def seed_files() -> list[bytes]:
    """Small valid files of both byte orders, all value types and several tensor types."""
    from conftest import TYPES, Raw

    files = []
    for raw in (Raw("<"), Raw(">")):
        numbers = [kind for kind in TYPES if kind not in ("string", "array")]
        pairs = [raw.pair(f"k.{kind}", kind, 1) for kind in numbers] + [
            raw.array(f"a.{kind}", kind, [1, 0, 1]) for kind in numbers
        ]
        pairs += [
            raw.pair("general.architecture", "string", "llama"),
            raw.pair("general.alignment", "uint32", 32),
        ]
        pairs += [raw.array("tokens", "string", ["a", "", b"\xff", "ab" * 40])]
        tensors = [raw.tensor("a", [4, 2], 0, 0), raw.tensor("b.weight", [32, 2], 7, 32)]
        tensors += [raw.tensor("c", [0, 3], 1, 96), raw.tensor("d", [5], 24, 96)]
        files += [
            raw.file(pairs),
            raw.file([], tensors, bytes(range(128))),
            raw.file(pairs, tensors, bytes(range(128))),
        ]
    return files


def damage(rng: random.Random, files: list[bytes]) -> bytes:
    """One to six changes: bits, runs of bytes, numbers that matter, pieces of another file, a new
    end.
    """
    data = bytearray(rng.choice(files))
    for _ in range(rng.randint(1, 6)):
        at, length = rng.randrange(len(data) + 1), rng.choice([1, 1, 4, 8, 8, 16, 40])
        donor = rng.choice(files)
        start = rng.randrange(len(donor) + 1)
        number = rng.choice(NUMBERS).to_bytes(8, rng.choice(["little", "big"]))[
            : rng.choice([4, 8, 8])
        ]
        piece = rng.choice(
            [
                b"",
                number,
                number,
                rng.randbytes(length),
                donor[start : start + length],
                data[at : at + length] * 2,
            ]
        )
        data[at : at + rng.choice([0, length, len(piece)])] = piece
        if rng.random() < 0.02:
            del data[at:]
    return bytes(data)


def run(seconds: float, seed: int) -> dict:
    """Damage files for so long: how many were refused, how many read right, and the slowest in
    seconds of this process.
    """
    rng, files = random.Random(seed), seed_files()
    refused, read, slowest = 0, 0, 0.0
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.gguf"
        while time.monotonic() < end:
            data, start = damage(rng, files), time.process_time()
            if checked(path, data):
                refused += 1
            else:
                read += 1
            slowest = max(slowest, time.process_time() - start)
    return {
        "seconds": seconds,
        "seed": seed,
        "refused": refused,
        "read": read,
        "slowest": round(slowest, 3),
    }


def checked(path: Path, data: bytes) -> bool:
    try:
        return check(path, data)
    except Exception:
        Path("fuzz-failure.gguf").write_bytes(data)
        raise


def run_atheris(options: list[str]):
    """Does not return: libFuzzer ends the process."""
    import atheris

    folder = Path(tempfile.mkdtemp())
    corpus = folder / "corpus"
    corpus.mkdir()
    for index, data in enumerate(seed_files()):
        (corpus / str(index)).write_bytes(data)
    atheris.instrument_all()
    atheris.Setup(
        [sys.argv[0], *options, str(corpus)],
        lambda data: checked(folder / "file.gguf", data) and None,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--atheris", action="store_true", help="guided by coverage; further options go to libFuzzer"
    )
    arguments, rest = parser.parse_known_args()
    if arguments.atheris:
        run_atheris(rest)
    print(json.dumps(run(arguments.seconds, arguments.seed)))
