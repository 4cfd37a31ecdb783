"""Measures speed and error of each kernel on a GPU, by type and shape.

    python benchmarks/gpu_kernels.py [--types Q4_0 Q6_K ...]

Each line of benchmarks/results/gpu_kernels.jsonl describes one kernel with one type at one shape:

- the median time of its launches in a profiler trace,
- the bandwidth, also as a share of the device's copy bandwidth, which is measured in the same run,
- at the smallest shape, the relative error against float32 products with exact values.

Launches alternate between several weights of 200 MB in total, so that they do not stay in a cache.
--turns sets another number of weights; four of 4096 x 4096 stay in the cache of an H200. The first
launch after another kernel is ignored, because that kernel's results are still being written to
memory.

The kernel "copy" is XLA's copy that moves as many bytes as the weight has, half of them read and
half written. It shows the bandwidth that a launch of this size can reach.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import itertools
import json
import statistics
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from gpu_models import facts
from kernel_trace import launches

from pallas_kernels import dequantize, samples, targets
from pallas_kernels.dequantize import reference
from pallas_kernels.packing import Packing
from pallas_kernels.qmatmul import (
    MODES,
    Product,
    Weight,
    codes,
    multiply,
    multiply_skinny,
    quantize,
)
from rocmforge_jax import formats
from rocmforge_jax.quant import word_packed

RESULTS = Path(__file__).parent / "results" / "gpu_kernels.jsonl"
TYPES = tuple(
    name for name, fmt in formats.FORMATS.items() if fmt.is_quantized and word_packed.can_hold(fmt)
)
#: Outputs and inputs of an attention projection and of a feed-forward of an 8B model, and of a
#: matrix with more than 60 MB in every type.
SHAPES = ((4096, 4096), (4096, 14336), (57344, 4096))
#: Kernel -> rows of activations (0 for none), and the prefix of the names of its launches.
KERNELS = {
    "int16": (1, "multiply_int16"),
    "int8": (1, "multiply_int8"),
    "float": (1, "multiply_float"),
    "many rows": (32, "multiply_many"),
    "dequantize": (0, "dequantize"),
}
BYTES, REPEATS = 200e6, 3
#: Without programmatic dependent launch, launches do not overlap, so each one can be timed.
ALONE = {"xla_gpu_enable_pdl": False}
#: The number of activations over which an error is computed.
ERRORS_OF = 16


@dataclasses.dataclass(frozen=True)
class Case:
    """A kernel at a shape, (N, K)."""

    kernel: str
    type_name: str
    shape: tuple[int, int]

    @property
    def packing(self) -> Packing:
        return word_packed.packing(formats.get(self.type_name))

    @property
    def rows(self) -> int:
        return KERNELS[self.kernel][0] if self.kernel in KERNELS else 0

    def planes(self, key):
        return samples.random_planes(key, self.packing, self.shape[0], self.shape[1] // 32)

    def operand(self):
        """What a weight is multiplied with."""
        return self.prepared(
            jax.random.normal(jax.random.key(7), (max(self.rows, 1), self.shape[1]), jnp.bfloat16)
        )

    def prepared(self, x):
        if self.kernel not in MODES:
            return x
        target = targets.current()
        return quantize(
            x, self.kernel, in_turn=codes.come_in_turn([self.packing], target), target=target
        )

    def run(self, x, planes):
        target = targets.current()
        if self.kernel == "dequantize":
            return dequantize.dequantize(planes, self.packing, jnp.bfloat16, target=target)
        if self.kernel == "many rows":
            product = Product((Weight(planes, self.packing),))
            return multiply_skinny(x, [product], dtype=jnp.float32, target=target)[0]
        weight = Weight(planes, self.packing)
        return multiply(
            x, [Product((weight,))], mode=self.kernel, dtype=jnp.float32, target=target
        )[0]

    def compiled(self) -> tuple:
        """`run` and, at the smallest shape, `error`, compiled."""
        x, planes = jax.eval_shape(self.operand), jax.eval_shape(self.planes, jax.random.key(0))
        error = (
            jax.jit(self.error).trace(jax.eval_shape(self.several), planes).lower().compile()
            if self.shape == SHAPES[0]
            else None
        )
        return jax.jit(self.run).trace(x, planes).lower().compile(compiler_options=ALONE), error

    def several(self):
        """What an error is taken over.

        An operand of `error`: within one program XLA might not round it.
        """
        return jax.random.normal(
            jax.random.key(7), (ERRORS_OF, self.rows, self.shape[1]), jnp.bfloat16
        )

    def error(self, several, planes) -> float:
        """Computes the relative error of results of `run`.

        They are the values themselves, or products of one row with several x: a single x may be
        nearly a multiple of what all rows of a weight have in common.
        """
        exact = reference.dequantize(planes, self.packing)
        if self.kernel == "dequantize":
            return _distance(self.run(None, planes), exact)
        found = jax.lax.map(lambda x: self.run(self.prepared(x), planes), several)
        return _distance(found, jnp.dot(several.astype(jnp.float32), exact.T, precision="highest"))

    def weight_bytes(self) -> int:
        planes = jax.eval_shape(self.planes, jax.random.key(0))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(planes))

    def bytes(self) -> int:
        """Read and written: the weight, and where it is dequantised its values."""
        return self.weight_bytes() + (
            2 * self.shape[0] * self.shape[1] if self.kernel == "dequantize" else 0
        )


def _distance(found, exact):
    return jnp.linalg.norm((found.astype(jnp.float32) - exact).ravel()) / jnp.linalg.norm(
        exact.ravel()
    )


def measure(cases: list[Case], programs: dict, bandwidth: float, turns: int | None) -> list[dict]:
    """Results of all kernels for one type and shape, from one trace: that takes seconds.

    turns: weights, None: 200 MB of them.
    """
    make, size = jax.jit(cases[0].planes), cases[0].weight_bytes()
    weights = [make(jax.random.key(i)) for i in range(turns or _turns(size))]
    operands = {case: jax.jit(case.operand)() for case in cases}
    errors = {case: programs[case][1] for case in cases if programs[case][1]}
    errors = {case: float(error(case.several(), weights[0])) for case, error in errors.items()}

    def run(case):
        return [programs[case][0](operands[case], planes) for planes in (weights[-1], *weights)]

    jax.block_until_ready([run(case) for case in cases])
    times = collections.defaultdict(list)
    for name, duration in launches([lambda case=case: run(case) for case in cases] * REPEATS):
        times[
            next(
                (kernel for kernel, (_, begins) in KERNELS.items() if name.startswith(begins)), None
            )
        ].append(duration)

    def median(kernel):
        return statistics.median(_without_firsts(times[kernel], len(weights)))

    return [
        _result(case, median(case.kernel), case.bytes(), bandwidth, errors.get(case))
        for case in cases
    ]


def measure_copies(cases: list[Case], bandwidth: float) -> list[dict]:
    """Results of copies of as many bytes as the weights of the cases have, from one trace."""
    copies = dict.fromkeys(dataclasses.replace(case, kernel="copy") for case in cases)
    sizes = {copy: copy.weight_bytes() for copy in copies}
    arrays = {
        size: [jnp.full(size // 8, i, jnp.uint32) for i in range(_turns(size))]
        for size in set(sizes.values())
    }
    programs = {
        size: jax.jit(lambda array: array ^ 1).lower(of_size[0]).compile(compiler_options=ALONE)
        for size, of_size in arrays.items()
    }

    def run(size):
        return [programs[size](array) for array in (arrays[size][-1], *arrays[size])]

    jax.block_until_ready([run(size) for size in arrays])
    durations = iter(
        [
            duration
            for _, duration in launches(
                [lambda size=size: run(size) for size in arrays for _ in range(REPEATS)]
            )
        ]
    )
    times = {
        size: [next(durations) for _ in range(REPEATS * (1 + len(of_size)))]
        for size, of_size in arrays.items()
    }
    medians = {
        size: statistics.median(_without_firsts(of_size, len(arrays[size])))
        for size, of_size in times.items()
    }
    return [_result(copy, medians[size], size, bandwidth, None) for copy, size in sizes.items()]


def _turns(size: int) -> int:
    return max(2, min(24, -(-int(BYTES) // size)))


def _without_firsts(times: list, turns: int) -> list:
    return [time for i, time in enumerate(times) if i % (turns + 1)]


def _result(case, microseconds, moved, bandwidth, error) -> dict:
    speed = moved / microseconds / 1e3
    line = {
        "kernel": case.kernel,
        "type": case.type_name,
        "shape": case.shape,
        "rows": case.rows,
        "microseconds": microseconds,
    }
    return (
        line
        | {"gb_per_s": speed, "share_of_copy_bandwidth": speed / bandwidth}
        | ({} if error is None else {"error": error})
    )


def compiled(cases: list[Case]) -> dict:
    """{case: program} of those that compile; what does not is said.

    None is timed while another is compiled.
    """
    with concurrent.futures.ThreadPoolExecutor() as pool:
        futures = {case: pool.submit(case.compiled) for case in cases}
        concurrent.futures.wait(futures.values())
    for case, future in futures.items():
        if future.exception():
            print(f"{case}: {future.exception()}", file=sys.stderr)
    return {case: future.result() for case, future in futures.items() if not future.exception()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--types",
        nargs="+",
        default=TYPES,
        choices=TYPES,
        metavar="TYPE",
        help="default: all that kernels read",
    )
    parser.add_argument(
        "--kernels",
        nargs="+",
        default=list(KERNELS),
        choices=KERNELS,
        metavar="KERNEL",
        help="default: all",
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        default=SHAPES,
        type=lambda text: tuple(map(int, text.split("x"))),
        metavar="NxK",
        help="default: all",
    )
    parser.add_argument(
        "--turns", type=int, help="take turns with so many weights (default: as many as are 200 MB)"
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="the file to append to (default: %(default)s)"
    )
    options = parser.parse_args()
    known = facts()
    cases = [
        Case(kernel, name, shape)
        for name in options.types
        for shape in options.shapes
        for kernel in options.kernels
    ]
    programs, by_weight = compiled(cases), collections.defaultdict(list)
    for case in programs:
        by_weight[case.type_name, case.shape].append(case)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    bandwidth = known["copy_gb_per_s"]
    text = (
        "{kernel:>10} {type:<7} {shape[0]:>5} x {shape[1]:<5} {microseconds:8.1f} us,"
        " {share_of_copy_bandwidth:4.2f} of a copy"
    )
    with options.results.open("a") as results:
        measured = (
            measure(of_weight, programs, bandwidth, options.turns)
            for of_weight in by_weight.values()
        )
        for line in itertools.chain(
            measure_copies(cases, bandwidth), itertools.chain.from_iterable(measured)
        ):
            line |= {"turns": options.turns} if options.turns else {}
            print(json.dumps(known | line), file=results, flush=True)
            print(
                text.format(**line) + (f", error {line['error']:.1e}" if "error" in line else ""),
                flush=True,
            )


if __name__ == "__main__":
    main()
