"""Measures the C++ products on this CPU.

    python benchmarks/cpu_kernels.py [--types Q4_0 ...] [--rows 1 128] [--instructions AMX AVX2]

The script first measures the ceiling: the memory bandwidth that the same number of threads reaches.
Products with few rows of activations are bound by it; products with many rows are bound by
arithmetic.

Each product runs over several matrices that together exceed the caches, so that every byte of a
weight comes from memory, as in a model. Numbers are medians over repeated runs. The cases take
turns, sets of instructions included, so that other load on the machine affects all of them equally.

`busy` is the share of the threads' time that this process used. A value below 0.9 for many rows
means that other processes used the rest. The last line is one JSON object.
"""

import argparse
import concurrent.futures
import ctypes
import itertools
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from opening import processor

from pallas_kernels.qmatmul import Product, Weight
from rocmforge_jax import formats
from rocmforge_jax.backends import cpp
from rocmforge_jax.cpp import build, library, products
from rocmforge_jax.quant import word_packed

TYPES = ("Q4_0", "Q5_1", "Q8_0", "Q4_K", "Q6_K")
#: Outputs x inputs of the matrices of Qwen2.5-0.5B and Llama-3.2-1B. K-quants skip the shapes whose
#: inputs are not a multiple of 256.
SHAPES = ("4864x896", "896x4864", "151936x896", "8192x2048", "2048x8192", "128256x2048")
READER = """
#include <cstdint>
extern "C" uint64_t read_all(const uint64_t* p, int64_t count) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < count; i++) sum ^= p[i];
  return sum;
}
"""


def read_bandwidth(threads: int, size: int, repeats: int) -> float:
    """Bytes a second that threads read from memory, each its part of `size` bytes: the median."""
    with tempfile.TemporaryDirectory() as folder:
        reader = Path(folder) / "reader.so"
        command = [
            *build.compiler(),
            "-O3",
            "-march=native",
            "-shared",
            "-fPIC",
            "-x",
            "c++",
            "-",
            "-o",
            str(reader),
        ]
        subprocess.run(command, input=READER, text=True, check=True)
        read = ctypes.CDLL(str(reader)).read_all
    read.argtypes, read.restype = [ctypes.c_void_p, ctypes.c_int64], ctypes.c_uint64
    words = np.ones(size // 8, np.uint64)
    parts = [
        (words.ctypes.data + i * words.nbytes // threads, words.size // threads)
        for i in range(threads)
    ]
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return statistics.median(
            size / _timed(lambda: list(pool.map(lambda part: read(*part), parts)))[0]
            for _ in range(repeats)
        )


def _timed(run) -> tuple[float, float]:
    """(Seconds, seconds of all threads together)."""
    busy, start = time.process_time(), time.perf_counter()
    run()
    return time.perf_counter() - start, time.process_time() - busy


def random_planes(packing, rows: int, count: int) -> dict[str, np.ndarray]:
    """The planes of a matrix of `rows` rows of `count` groups."""
    rng = np.random.default_rng(0)
    shapes = {
        "codes": (rows, packing.bits, count),
        "d": (rows, count // packing.span),
        "scale": (rows, packing.halves, count),
    }
    values = {"codes": lambda shape: rng.integers(0, 2**32, shape, np.uint32)}

    def d(shape):
        return (
            np.full(shape, 0x1C001C00, np.uint32)
            if packing.minimum
            else np.full(shape, 1e-3, np.float16)
        )

    values |= {"d": d, "scale": lambda shape: rng.integers(1, 60, shape, np.uint8)}
    return {
        name: values[name](shapes[name]).astype(dtype) for name, dtype in packing.planes().items()
    }


class Case:
    """Products of one type and shape with some rows of activations.

    One program multiplies several matrices.
    """

    def __init__(self, name: str, shape: str, rows: int, mode: str, size: int):
        self.name, self.shape, self.rows, self.mode = name, shape, rows, mode
        self.outputs, self.inputs = map(int, shape.split("x"))
        packing = word_packed.packing(formats.get(name))
        planes = random_planes(packing, self.outputs, self.inputs // 32)
        self.bytes = sum(plane.nbytes for plane in planes.values())
        self.copies = max(1, size // self.bytes)
        self._weights = [
            {name: jax.numpy.array(plane) for name, plane in planes.items()}
            for _ in range(self.copies)
        ]
        self._x = jax.random.normal(jax.random.key(1), (rows, self.inputs), "float32")
        self._run = jax.jit(
            lambda x, weights: [
                products.multiply(x, [Product((Weight(w, packing),))], mode=mode)[0][:1, :1]
                for w in weights
            ]
        )
        self.run()

    def run(self) -> tuple[float, float]:
        seconds, busy = _timed(lambda: jax.block_until_ready(self._run(self._x, self._weights)))
        return seconds / self.copies, busy / self.copies

    def result(self, times: list[tuple[float, float]], bandwidth: float, used: str) -> dict:
        seconds, busy = (statistics.median(each) for each in zip(*times))
        weights = self.outputs * self.inputs
        return {
            "type": self.name,
            "shape": self.shape,
            "rows": self.rows,
            "mode": self.mode,
            "instructions": used,
            "matrices": self.copies,
            "microseconds": seconds * 1e6,
            "weights_per_s": weights / seconds,
            "bytes_per_s": self.bytes / seconds,
            "share_of_bandwidth": self.bytes / seconds / bandwidth,
            "flop_per_s": 2 * self.rows * weights / seconds,
            "busy": busy / seconds / os.cpu_count(),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--types", nargs="+", default=TYPES)
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--rows", nargs="+", type=int, default=(1, 128))
    parser.add_argument("--modes", nargs="+", default=tuple(products.MODES))
    parser.add_argument(
        "--instructions",
        nargs="+",
        metavar="NAME",
        help="sets to compare, of those that the processor has (default: the fastest)",
    )
    parser.add_argument(
        "--megabytes", type=int, default=400, help="of all matrices of a type and shape together"
    )
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    path, size = cpp.build_library(), arguments.megabytes << 20
    fastest = library.load(path)
    compared = arguments.instructions or [fastest]
    threads = os.cpu_count()
    bandwidth = read_bandwidth(threads, 1 << 30, arguments.repeats)
    print(f"{processor()}, {threads} threads read {bandwidth / 1e9:.1f} GB/s")
    print(
        f"{'':7}{'matrix':>13}{'rows':>6}{'mode':>7} {'instructions':14}{'us':>11}"
        f"{'Gweights/s':>12}{'GB/s':>7}{'of read':>9}{'GFLOP/s':>9}{'busy':>6}"
    )
    results = []
    for name, shape in itertools.product(arguments.types, arguments.shapes):
        if int(shape.split("x")[1]) // 32 % word_packed.packing(formats.get(name)).span:
            continue
        cases = [
            Case(name, shape, *which, size)
            for which in itertools.product(arguments.rows, arguments.modes)
        ]
        runs, times = list(itertools.product(cases, compared)), []
        for _ in range(arguments.repeats):
            times.append([])
            for case, used in runs:
                library.use(path, used)
                times[-1].append(case.run())
        for (case, used), of_case in zip(runs, zip(*times)):
            results.append(r := case.result(of_case, bandwidth, used))
            print(
                f"{name:7}{shape:>13}{case.rows:6}{case.mode:>7} {used:14}"
                f"{r['microseconds']:11,.1f}{r['weights_per_s'] / 1e9:12.2f}"
                f"{r['bytes_per_s'] / 1e9:7.1f}"
                f"{r['share_of_bandwidth']:9.2f}{r['flop_per_s'] / 1e9:9,.0f}{r['busy']:6.2f}",
                flush=True,
            )
    about = {
        "processor": processor(),
        "threads": threads,
        "jax": jax.__version__,
    }
    print(json.dumps(about | {"read_bytes_per_s": bandwidth, "products": results}))


if __name__ == "__main__":
    main()
