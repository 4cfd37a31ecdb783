"""Measures the kernels of gated delta nets on a GPU, for several sizes of programs.

    python benchmarks/gpu_delta.py [--batches 1 32] [--results FILE]

Each case is first compared with a float64 computation on the host. Then it is timed in a profiler
trace. It alternates between many states, so that they do not stay in a cache. The time of a step is
the sum of its launches, each running alone on the GPU.

The limit is the time of a copy that moves as many bytes as reading and writing the memories; the
other arrays are small. The last lines are a table.
"""

import argparse
import concurrent.futures
import functools
import itertools
import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from gpu_models import facts
from kernel_trace import launches

from pallas_kernels import targets
from pallas_kernels.delta_rule import DeltaHeads, Parameters, RecurrentState, Token, step
from pallas_kernels.delta_rule.blocks import Blocks, blocks_of
from rocmforge_jax.backends import Numerics
from rocmforge_jax.nn import (
    CausalConvolution,
    ConvState,
    DeltaNetSpec,
    MemoryState,
    RMSNorm,
    delta_net,
)

#: Name -> heads. Qwen 3.5 9B and 35B-A3B have the same heads.
SHAPES = {
    "qwen3.5-9b": DeltaHeads(16, 32, 128, 128, grouped=False),
    "qwen3-next": DeltaHeads(16, 32, 128, 128, grouped=True),
    "qwen3.5-27b": DeltaHeads(16, 48, 128, 128, grouped=False),
}
#: Sizes of programs to try with the first shape.
SWEEP = [
    *(Blocks(columns, threads) for columns, threads in ((16, 64), (16, 128), (32, 64), (32, 128))),
    *(Blocks(columns, threads) for columns, threads in ((32, 256), (64, 128), (64, 256))),
    *(Blocks(128, threads) for threads in (256, 512, 1024)),
]
TAPS, EPSILON, MODE = 4, 1e-6, "int16"
#: Largest allowed relative errors of the output, which is rounded to bfloat16, and of the memory.
ALLOWED = 3e-3, 1e-6
BYTES, REPEATS = 150e6, 3
#: Without programmatic dependent launch, launches do not overlap, so each one can be timed.
ALONE = {"xla_gpu_enable_pdl": False}


def operands(heads: DeltaHeads, batch: int, key) -> tuple[Token, Parameters]:
    """Random projections of a token and parameters of a layer."""
    N, W, C = heads.value_heads, heads.value_width, heads.channels
    shapes = [(batch, C), (batch, N, W), (batch, N), (batch, N), (TAPS, C), (N,), (N,), (W,)]
    keys = jax.random.split(key, len(shapes))
    made = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes)]
    *token, filters, dt, rates, scale = made
    token = Token(*(part.astype(jnp.bfloat16) for part in token))
    return token, Parameters(filters / 2, dt, -jnp.exp(rates), 1 + scale / 10)


def state(heads: DeltaHeads, batch: int, key) -> RecurrentState:
    """A random state."""
    memory = batch, heads.value_heads, heads.key_width, heads.value_width
    inputs = jax.random.normal(key, (batch, TAPS - 1, heads.channels), jnp.bfloat16)
    return RecurrentState(jax.random.normal(key, memory), inputs)


def truth(held, token, parameters, heads: DeltaHeads):
    """The output and the memory in float64, on the host."""
    wide = functools.partial(jax.tree.map, lambda a: np.asarray(a).astype(np.float64))
    token, parameters, held = wide(token), wide(parameters), wide(held)
    (B, N), H = token.beta_BN.shape, heads.key_width

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    inputs = np.concatenate([held.inputs_BLC, token.qkv_BC[:, None]], axis=1)
    seen = (inputs * parameters.filters_LC[None]).sum(axis=1)
    seen = seen * sigmoid(seen)
    q, k, v = np.split(seen, [heads.first_key, 2 * heads.first_key], axis=1)
    of = heads.key_head(np.arange(N))
    q, k = (part.reshape(B, heads.key_heads, H)[:, of] for part in (q, k))
    q, k = (part / np.sqrt((part**2).sum(-1, keepdims=True) + EPSILON) for part in (q, k))
    rates = np.log1p(np.exp(token.alpha_BN + parameters.dt_N[None]))
    memory = held.memory_BNHW * np.exp(rates * parameters.a_N[None])[..., None, None]
    change = v.reshape(B, N, -1) - np.einsum("bnh,bnhw->bnw", k, memory)
    memory += k[..., None] * (sigmoid(token.beta_BN)[..., None] * change)[:, :, None]
    out = np.einsum("bnh,bnhw->bnw", q, memory) * H**-0.5
    out /= np.sqrt((out**2).mean(-1, keepdims=True) + EPSILON)
    return out * parameters.scale_W * token.gate_BNW * sigmoid(token.gate_BNW), memory


def distance(found, exact) -> float:
    """Relative L2 distance."""
    found = np.asarray(found).astype(np.float64)
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def of_kernels(heads: DeltaHeads, blocks: Blocks):
    """A step by the kernels, as a function of state, token and parameters."""

    def run(held, token, parameters):
        how = dict(epsilons=(EPSILON, EPSILON), activations=MODE, target=targets.current())
        return step(token, parameters, held, heads, blocks=blocks, **how)

    return run


def of_xla(heads: DeltaHeads, _):
    """A step in plain XLA, likewise."""
    spec = DeltaNetSpec(heads, EPSILON, Numerics(backend="xla"))

    def run(held, token, parameters):
        conv = CausalConvolution(TAPS, heads.channels, rngs=nnx.Rngs(0))
        norm = RMSNorm(heads.value_width, epsilon=EPSILON)
        conv.kernel.set_value(parameters.filters_LC)
        norm.scale.set_value(parameters.scale_W)
        projected = tuple(part.reshape(len(part), 1, -1) for part in token)
        before = MemoryState(held.memory_BNHW, ConvState(held.inputs_BLC))
        others = conv, parameters.dt_N, parameters.a_N, norm, before
        out, after = delta_net(spec, projected, *others)
        return out.array, RecurrentState(after.memory_BNHW, after.conv.inputs)

    return run


def compiled(case, batch: int):
    """A program for a case, which writes its state in place; or the error of the compiler."""
    make, heads, blocks = case
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda: (state(heads, batch, key), *operands(heads, batch, key)))
    try:
        traced = jax.jit(make(heads, blocks), donate_argnums=0).trace(*shapes)
        return traced.lower().compile(compiler_options=ALONE)
    except Exception as error:  # any error of the compiler is reported as the result
        return error


def sample(heads: DeltaHeads, batch: int) -> tuple:
    """Operands to compare with float64."""
    return (
        state(heads, batch, jax.random.key(1)),
        *operands(heads, batch, jax.random.key(2)),
    )


def problem(program, heads: DeltaHeads, batch: int, expected) -> str | None:
    """Returns what is wrong with the output or the memory that a program computes."""
    out, after, *_ = program(*sample(heads, batch))
    found = np.asarray(out).reshape(expected[0].shape), after.memory_BNHW
    off = [distance(one, exact) for one, exact in zip(found, expected)]
    if all(error <= most for error, most in zip(off, ALLOWED)):
        return None
    return f"WRONG: relative errors {off[0]:.1e} and {off[1]:.1e}"


@functools.cache
def timed(heads: DeltaHeads, batch: int) -> tuple[list, tuple]:
    """States to take turns with, and the other operands of a step."""
    make = jax.jit(functools.partial(state, heads, batch))
    turns = max(3, int(BYTES / memory_bytes(heads, batch)))
    return [make(jax.random.key(i)) for i in range(turns)], operands(
        heads, batch, jax.random.key(3)
    )


def microseconds(program, heads: DeltaHeads, batch: int) -> list[float]:
    """The time of each launch of a step; of plain XLA's steps the average of all together."""
    states, rest = timed(heads, batch)

    def run():
        for i, held in enumerate(states):
            states[i] = program(held, *rest)[1]
        return states

    jax.block_until_ready(run())
    turns = len(states)
    found = launches([run] * REPEATS)
    own = [time for name, time in found if name.startswith("delta_step")]
    if not own:
        steps = turns * REPEATS
        return [sum(time for _, time in found) / steps] + [0.0] * round(len(found) / steps - 1)
    each = len(own) // (turns * REPEATS)
    return [statistics.median(own[i::each]) for i in range(each)]


def memory_bytes(heads: DeltaHeads, batch: int) -> int:
    """Bytes of the memories."""
    return 4 * batch * heads.value_heads * heads.key_width * heads.value_width


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--results", type=Path, help="a file to append JSON lines to")
    options = parser.parse_args()
    begin, known, target = time.perf_counter(), facts(), targets.current()
    cases, table = [], []
    for name, batch in itertools.product(SHAPES, options.batches):
        heads = SHAPES[name]
        default = blocks_of(batch * heads.value_heads, target)
        is_first = name == next(iter(SHAPES))
        tried = dict.fromkeys([default, *(SWEEP if is_first else [])])
        cases += [(name, batch, (of_kernels, heads, blocks)) for blocks in tried]
        cases += [(name, batch, (of_xla, heads, None))] * is_first
    with concurrent.futures.ThreadPoolExecutor() as pool:
        made = list(pool.map(lambda case: compiled(case[2], case[1]), cases))
    print(f"compiled {len(made)} programs: {time.perf_counter() - begin:.0f} s", flush=True)
    expected = {}
    for (name, batch, case), program in zip(cases, made):
        _, heads, blocks = case
        if (heads, batch) not in expected:
            expected[heads, batch] = truth(*sample(heads, batch), heads)
        what = f"{blocks.columns} columns, {blocks.threads} threads" if blocks else "plain XLA"
        line = dict(shape=name, batch=batch, kernel=what, problem=None, microseconds=[])
        line["limit"] = 2 * memory_bytes(heads, batch) / known["copy_gb_per_s"] / 1e3
        table.append(known | line)
        if isinstance(program, Exception):
            table[-1]["problem"] = f"does not compile: {str(program)[:200]}"
            continue
        table[-1]["problem"] = problem(program, heads, batch, expected[heads, batch])
        table[-1]["microseconds"] = microseconds(program, heads, batch)
    print(f"measured: {time.perf_counter() - begin:.0f} s", flush=True)
    if options.results:
        with options.results.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in table)
    print(f"copies at {known['copy_gb_per_s']:.0f} GB/s; {known['device']}; microseconds")
    for line in table:
        each, launched = line["microseconds"], len(line["microseconds"])
        parts = f"{each[0]:.2f} + {each[1]:.2f}" if launched == 2 else f"{launched} launches"
        print(
            f"{line['shape']:<12} {line['batch']:>3} {line['kernel']:<24} {sum(each):8.2f}  limit"
            f" {line['limit']:6.2f}  {parts}  {line['problem'] or ''}"
        )


if __name__ == "__main__":
    main()
