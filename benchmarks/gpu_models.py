"""Measures whole models on a GPU.

    python benchmarks/gpu_models.py [--shapes llama-3.1-8b] [--mixes Q4_0 Q4_K_M ...]

Models have random weights, created on the device. Each line of benchmarks/results/gpu_models.jsonl
is one measurement of one model in one activation mode, with the peak memory until then:

- tokens per second of decoding, by the wall clock: one sequence, one sequence at a depth, or the
  sum of a batch,
- tokens per second of prompts, by the wall clock,
- the compile time,
- the times of the kernels of a decode step.

The ceiling of a decode step follows from the copy bandwidth, which is measured in the same run.
"""

import argparse
import collections
import datetime
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import made
import numpy as np
from flax import nnx
from kernel_trace import kernel_times

from rocmforge_jax.generate import Engine, SamplingParams
from rocmforge_jax.models import Mixture

RESULTS = Path(__file__).parent / "results" / "gpu_models.jsonl"
MIXES = ("Q4_0", "Q4_K_M", "Q5_0", "Q6_K", "Q8_0")
TOKENS, REPEATS = 128, 3
GREEDY = SamplingParams(temperature=0.0)
#: Nearly uniform sampling for batches, as in llama-batched-bench. With random weights, greedy texts
#: soon repeat one token, and then all sequences choose the same experts.
UNIFORM = SamplingParams(temperature=100.0, top_k=0, top_p=1.0, min_p=0.0)


def copy_bandwidth() -> float:
    """GB/s of a large copy, reads and writes counted."""
    array = jax.random.normal(jax.random.key(0), (1 << 28,), jnp.float32)
    times = kernel_times(lambda: _increment(array), 5)
    return 2 * array.nbytes / max(us for us, _ in times.values()) / 1e3


_increment = jax.jit(lambda array: array + 1)


def facts() -> dict:
    """What every result says: when, on what, with which versions, and the ceiling.

    The date is UTC's.
    """
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": jax.devices()[0].device_kind,
        "versions": {"jax": jax.__version__},
        "copy_gb_per_s": copy_bandwidth(),
    }


def measure(
    shape: str, mix: str, activations: str, bandwidth: float, wanted: set[str]
) -> Iterator[dict]:
    """What is wanted of MEASUREMENTS, one after the other, for a model that is made for it."""
    decoder = made.decoder(shape, mix, activations=activations)
    engine, model = (
        Engine(decoder),
        {
            "shape": shape,
            "mix": mix,
            "activations": activations,
            "bytes": _bytes(nnx.state(decoder)),
        },
    )

    def line(**found):
        return (
            model
            | found
            | {"peak_bytes": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")}
        )

    start = time.perf_counter()
    engine.warm_up()
    yield line(compile_seconds=time.perf_counter() - start)
    for name in [name for name in MEASUREMENTS if name in wanted]:
        found = {name: MEASUREMENTS[name](engine)}
        if name == "decode_tokens_per_s":
            found["share_of_copy_bandwidth"] = (
                _bytes_of_a_token(decoder) * found[name] / 1e9 / bandwidth
            )
        yield line(**found)


def _bytes(state) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def _bytes_of_a_token(decoder) -> int:
    """Counts the bytes of weights that a step for one sequence reads.

    Experts that are not chosen do not count, nor an embedding that is not the head as well.
    """
    bytes = _bytes(nnx.state(decoder)) - (
        0 if decoder.output is None else _bytes(nnx.state(decoder.token_embd))
    )
    for layer, config in zip(decoder.blk, decoder.config.layers):
        if isinstance(mixture := config.feed_forward, Mixture):
            stacks = [m for name, m in vars(layer).items() if name.endswith("_exps")]
            experts = _bytes([nnx.state(stack) for stack in stacks])
            bytes -= experts * (mixture.experts - mixture.routing.used) // mixture.experts
    return bytes


def decode_speed(engine, batch: int, depth: int) -> float:
    """Tokens per second of all sequences together, from `depth` tokens on."""
    prompts = (
        np.random.default_rng(0).integers(0, engine.config.vocabulary, (batch, depth)).tolist()
    )

    def once():
        engine.forget()
        params = GREEDY if batch == 1 else UNIFORM
        steps = engine.generate(prompts, params, max_tokens=TOKENS + 1)
        next(steps)
        start = time.perf_counter()
        collections.deque(steps, maxlen=0)
        return batch * TOKENS / (time.perf_counter() - start)

    once()
    return statistics.median(once() for _ in range(REPEATS))


def prefill_speed(engine, length: int) -> float:
    prompt = np.random.default_rng(0).integers(0, engine.config.vocabulary, length).tolist()

    def once():
        engine.forget()
        start = time.perf_counter()
        jax.block_until_ready(engine.prefill([prompt])[0])
        return length / (time.perf_counter() - start)

    once()
    return statistics.median(once() for _ in range(REPEATS))


def step_kernels(engine, count: int = 40) -> list:
    """[kernel, microseconds a launch, launches a token] of decoding, the longest in all first."""

    def run():
        engine.forget()
        return [added[0].ids for added in engine.generate([[1] * 16], GREEDY, max_tokens=65)]

    times = kernel_times(run, 1)
    return [
        [name, round(us, 2), round(launches / 64, 2)]
        for name, (us, launches) in list(times.items())[:count]
    ]


MEASUREMENTS = {
    "decode_tokens_per_s": lambda engine: decode_speed(engine, 1, 16),
    "step_kernels": step_kernels,
    "prefill_512_tokens_per_s": lambda engine: prefill_speed(engine, 512),
    "prefill_2048_tokens_per_s": lambda engine: prefill_speed(engine, 2048),
    "decode_at_4096_tokens_per_s": lambda engine: decode_speed(engine, 1, 4096),
    "decode_batch_8_tokens_per_s": lambda engine: decode_speed(engine, 8, 16),
    "decode_batch_32_tokens_per_s": lambda engine: decode_speed(engine, 32, 16),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["llama-3.1-8b"])
    parser.add_argument("--mixes", nargs="+", default=MIXES)
    parser.add_argument("--activations", nargs="+", default=["int16", "int8"])
    parser.add_argument(
        "--measure",
        nargs="+",
        default=list(MEASUREMENTS),
        choices=MEASUREMENTS,
        metavar="NAME",
        help="default: all",
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="the file to append to (default: %(default)s)"
    )
    options = parser.parse_args()
    known = facts()
    for shape in options.shapes:
        for mix in options.mixes:
            for activations in options.activations:
                for found in measure(
                    shape, mix, activations, known["copy_gb_per_s"], set(options.measure)
                ):
                    line = json.dumps(known | found)
                    print(line, flush=True)
                    options.results.parent.mkdir(parents=True, exist_ok=True)
                    with options.results.open(
                        "a"
                    ) as results:  # written at once, so that an interrupted run keeps its results
                        print(line, file=results)


if __name__ == "__main__":
    main()
