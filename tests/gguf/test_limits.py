"""What a file may cost at most: 1 s and 64 MB beyond the importing process, for the worst files
that the caps allow.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc"
)
SECONDS, MEGABYTES = 10, 64  # time is guarded at ten times the goal, memory at the goal

MEASURE = """
import json, re, sys, time
from rocmforge_jax.gguf import GGUFError, open_gguf
def memory():  # ru_maxrss would inherit the parent's
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024
before, start = memory(), time.perf_counter()
try:
    outcome = repr(open_gguf(sys.argv[1]))
except GGUFError as error:
    outcome = str(error)
print(json.dumps([outcome, time.perf_counter() - start, memory() - before]))
"""


def strings(raw, key, count):
    """The head of an array of strings."""
    return raw.string(key) + raw.pack("IIQ", 9, 8, count)


def tensors(raw):
    return [raw.tensor(f"{n:063}", [1, 1, 1, 1], 24, 32 * n) for n in range(2**15)]


#: Name -> (the key-value pairs, the tensor table, the size that the file is extended to, what
#: opening says).
WORST = {
    "most tensors": (lambda raw: [], tensors, 2**24, "32768 tensors"),
    "most tensors without data": (lambda raw: [], tensors, 0, "cut short"),
    "most keys": (
        lambda raw: [raw.pair(f"{n:063}", "string", "x" * 500) for n in range(2**14)],
        None,
        0,
        "16384 keys",
    ),
    "longest keys": (
        lambda raw: [raw.pair(f"{n:065535}", "bool", True) for n in range(300)],
        None,
        0,
        "the most is 16777216",
    ),
    "most strings": (lambda raw: [strings(raw, "k", 2**21)], None, 2**40, "1 keys"),
    "too many strings": (
        lambda raw: [strings(raw, "k", 2**21 + 1)],
        None,
        2**40,
        "the most is 2097152",
    ),
    "too many strings in two arrays": (
        lambda raw: [strings(raw, "k", 2**21) + bytes(2**24), strings(raw, "l", 1)],
        None,
        2**40,
        "makes 2097153 in this file",
    ),
    "largest array": (
        lambda raw: [raw.string("k") + raw.pack("IIQ", 9, 12, 2**30)],
        None,
        2**40,
        "may have 1073741824",
    ),
    "longest string": (
        lambda raw: [raw.string("k") + raw.pack("IQ", 8, 2**30)],
        None,
        2**40,
        "may have 1073741824",
    ),
    "long strings": (
        lambda raw: [strings(raw, "k", 2**9) + raw.string(bytes(2**16)) * 2**9],
        None,
        0,
        "1 keys",
    ),
}


@pytest.mark.parametrize(("pairs", "table", "size", "expected"), WORST.values(), ids=WORST)
def test_worst_files(raw, tmp_path, pairs, table, size, expected):
    path = tmp_path / "file.gguf"
    with path.open("wb") as file:
        file.write(raw.file(pairs(raw), table(raw) if table else ()))
        file.truncate(max(size, file.tell()))  # a sparse file takes no space
    command = [sys.executable, "-c", MEASURE, str(path)]
    outcome, seconds, megabytes = json.loads(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout
    )
    assert expected in outcome
    assert seconds < SECONDS
    assert megabytes < MEGABYTES
