"""Measures the kernels of the state space of Mamba 2 on a GPU, beside plain XLA.

    python benchmarks/gpu_scan.py [--sweep] [--results FILE]

Prompts are the scan alone, in float32 and with rounded products. Steps are all that a token needs
between the projections of a block: convolution, scan, gate and norm. Each case is first compared
with a float64 computation on the host, then timed in a profiler trace: the sum of its launches,
each running alone on the GPU. Steps take turns with many states, so that these do not stay in a
cache.

The limit is the time of a copy that moves as many bytes as a case must read and write: the tokens,
the outputs and the memories once each. `--sweep` tries several sizes of programs. The last lines
are a table.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import itertools
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from gpu_delta import ALONE, distance
from gpu_models import facts
from kernel_trace import launches

from pallas_kernels import targets
from pallas_kernels.selective_scan import (
    Parameters,
    RecurrentState,
    ScanHeads,
    Tokens,
    scan,
    step,
)
from pallas_kernels.selective_scan.blocks import CHUNK_BLOCKS, Blocks, blocks_of
from pallas_kernels.targets import of_family
from rocmforge_jax.backends import Numerics
from rocmforge_jax.nn import (
    CausalConvolution,
    ConvState,
    GroupedRMSNorm,
    MemoryState,
    StateSpaceSpec,
    selective_scan,
    state_space,
)

#: Name -> heads.
SHAPES = {
    "granite-4-h-tiny": ScanHeads(48, 1, 64, 128),
    "nemotron-h-8b": ScanHeads(128, 8, 64, 128),
    "falcon-h1-7b": ScanHeads(24, 1, 128, 256),
}
TOKENS, BATCHES = (512, 2048), (1, 32)
#: Sizes of programs to try, as changes of the default.
PROMPT_SWEEP = (
    *(dict(columns=64, threads=128), dict(threads=128), dict(stages=1), dict(stages=2)),
    *(dict(rows=64), dict(rows=16), dict(part=64), dict(width=32), dict(threads_reading=256)),
    *(dict(tokens=32), dict(tokens=128, threads=128, threads_reading=256)),
)
STEP_SWEEP = (Blocks(8, 64), Blocks(8, 64, 4), Blocks(8, 128, 4), Blocks(4, 64, 4))
STEP_SWEEP += (Blocks(16, 64), Blocks(16, 128), Blocks(32, 128), Blocks(64, 128))
TAPS, EPSILON, MODE = 4, 1e-6, "int16"
#: Largest relative errors of prompts in float32 and rounded, and of steps, whose outputs are
#: rounded to bfloat16.
ALLOWED = {True: (3e-6, 3e-6), False: (2e-3, 2e-3), None: (3e-3, 1e-6)}
#: Tokens of the prompt that is compared with float64, bytes of the states of a step, and runs.
COMPARED, BYTES, REPEATS = 200, 150e6, 3


def tokens_of(heads: ScanHeads, T: int) -> tuple:
    """Random tokens of a prompt, a, d, and a memory."""
    N, H, K, W = heads.heads, heads.head_width, heads.groups, heads.state_width
    shapes = [(1, T, N, H), (1, T, N), (1, T, K, W), (1, T, K, W), (N,), (N,), (1, N, H, W)]
    keys = jax.random.split(jax.random.key(0), len(shapes))
    x, dt, b, c, a, d, memory = (jax.random.normal(*pair) for pair in zip(keys, shapes))
    return Tokens(x, jax.nn.softplus(dt - 2), b, c), -jnp.exp(a), d, memory


def truth_of_prompt(tokens, a, d, memory):
    """Outputs and memory in float64, on the host."""
    wide = functools.partial(jax.tree.map, lambda a: np.asarray(a).astype(np.float64))
    (x, dt, b, c), a, d, memory = wide((tokens, a, d, memory))
    out, shared = np.zeros(x.shape), x.shape[2] // b.shape[2]
    for t in range(x.shape[1]):
        towards, along = (np.repeat(part[:, t], shared, axis=1) for part in (b, c))
        memory *= np.exp(dt[:, t] * a)[..., None, None]
        memory += (dt[:, t, :, None] * x[:, t])[..., None] * towards[:, :, None]
        out[:, t] = np.einsum("bnhw,bnw->bnh", memory, along) + d[None, :, None] * x[:, t]
    return out, memory


def step_of(heads: ScanHeads, batch: int) -> tuple:
    """A random projection of a token, and parameters of a layer."""
    N, C = heads.heads, heads.channels
    shapes = [(batch, heads.projected), (TAPS, C), (C,), (N,), (N,), (N,), (heads.inner,)]
    keys = jax.random.split(jax.random.key(1), len(shapes))
    projected, filters, bias, dt, rates, d, scale = (
        jax.random.normal(*pair) for pair in zip(keys, shapes)
    )
    parameters = Parameters(filters / 2, bias, dt, -jnp.exp(rates), d, 1 + scale / 10)
    return projected.astype(jnp.bfloat16), parameters


def state_of(heads: ScanHeads, batch: int, key) -> RecurrentState:
    """A random state."""
    memory = batch, heads.heads, heads.head_width, heads.state_width
    inputs = jax.random.normal(key, (batch, TAPS - 1, heads.channels), jnp.bfloat16)
    return RecurrentState(jax.random.normal(key, memory), inputs)


def truth_of_step(heads: ScanHeads, held, projected, parameters):
    """Output and memory in float64, on the host."""
    wide = functools.partial(jax.tree.map, lambda a: np.asarray(a).astype(np.float64))
    projected, parameters, held = wide(projected), wide(parameters), wide(held)

    def silu(x):
        return x / (1 + np.exp(-x))

    N, K, W, inner = heads.heads, heads.groups, heads.state_width, heads.inner
    z, x, dt = np.split(projected, [inner, inner + heads.channels], axis=1)
    inputs = np.concatenate([held.inputs_BLC, x[:, None]], axis=1)
    seen = silu((inputs * parameters.filters_LC[None]).sum(axis=1) + parameters.bias_C)
    x, b, c = np.split(seen, [inner, inner + K * W], axis=1)
    b, c = (np.repeat(part.reshape(-1, K, W), N // K, axis=1) for part in (b, c))
    x, dt = x.reshape(len(x), N, -1), np.log1p(np.exp(dt + parameters.dt_N))
    tokens = Tokens(*(part[:, None] for part in (x, dt, b, c)))
    out, memory = truth_of_prompt(tokens, parameters.a_N, parameters.d_N, held.memory_BNHW)
    groups = (out.reshape(z.shape) * silu(z)).reshape(len(z), K, -1)
    groups = groups / np.sqrt((groups**2).mean(-1, keepdims=True) + EPSILON)
    return groups.reshape(z.shape) * parameters.scale_I, memory


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt by kernels with sizes of programs, or by plain XLA with None."""

    name: str
    tokens: int
    exact: bool
    blocks: object

    @property
    def heads(self):
        return SHAPES[self.name]

    @property
    def limit_bytes(self) -> int:
        """Bytes of tokens, outputs and memories."""
        tokens, *_, memory = jax.eval_shape(lambda: tokens_of(self.heads, self.tokens))
        parts = (*tokens, tokens.x_BTNH, memory, memory)
        return sum(4 * part.size for part in parts)

    def run(self, tokens, a, d, memory):
        if self.blocks is None:
            x, dt, b, c = tokens
            return selective_scan(x, dt, a, b, c, d, memory, backend="xla")
        how = dict(exact=self.exact, blocks=self.blocks, target=targets.current())
        return scan(tokens, a, d, memory, **how)

    def compiled(self):
        """The program to time, and one of fewer tokens to compare."""
        made = []
        for tokens in (self.tokens, COMPARED):
            shapes = jax.eval_shape(lambda tokens=tokens: tokens_of(self.heads, tokens))
            lowered = jax.jit(self.run, donate_argnums=3).trace(*shapes).lower()
            made.append(lowered.compile(compiler_options=ALONE))
        return made

    def errors(self, programs):
        operands = tokens_of(self.heads, COMPARED)
        expected = _expected_of_prompt(self.heads)
        return [distance(*pair) for pair in zip(programs[1](*operands), expected)]

    def launches(self, programs):
        *operands, memory = tokens_of(self.heads, self.tokens)

        def run():
            nonlocal memory
            out, memory = programs[0](*operands, memory)
            return out

        jax.block_until_ready(run())
        found = launches([run] * REPEATS)
        return [(name, time / REPEATS) for name, time in found]


@functools.cache
def _expected_of_prompt(heads):
    return truth_of_prompt(*tokens_of(heads, COMPARED))


@dataclasses.dataclass(frozen=True)
class Step:
    """A step by kernels with sizes of programs, or by plain XLA with None."""

    name: str
    batch: int
    blocks: Blocks | None
    exact = None

    @property
    def heads(self):
        return SHAPES[self.name]

    @property
    def limit_bytes(self) -> int:
        """Bytes of the memories, read and written."""
        return 2 * 4 * self.batch * self.heads.inner * self.heads.state_width

    def run(self, held, projected, parameters):
        if self.blocks is not None:
            how = dict(epsilon=EPSILON, activations=MODE, target=targets.current())
            return step(projected, parameters, held, self.heads, blocks=self.blocks, **how)[:2]
        filters, bias, *vectors, scale = parameters
        conv = CausalConvolution(TAPS, self.heads.channels, use_bias=True, rngs=nnx.Rngs(0))
        norm = GroupedRMSNorm(self.heads.groups, self.heads.inner, epsilon=EPSILON)
        conv.kernel.set_value(filters)
        conv.bias.set_value(bias)
        norm.scale.set_value(scale.reshape(self.heads.groups, -1))
        state = MemoryState(held.memory_BNHW, ConvState(held.inputs_BLC))
        spec = StateSpaceSpec(self.heads, Numerics(backend="xla"))
        out, after = state_space(spec, projected[:, None], conv, *vectors, norm, state)
        return out.array, RecurrentState(after.memory_BNHW, after.conv.inputs)

    def compiled(self):
        key = jax.random.key(0)
        shapes = jax.eval_shape(
            lambda: (state_of(self.heads, self.batch, key), *step_of(self.heads, self.batch))
        )
        lowered = jax.jit(self.run, donate_argnums=0).trace(*shapes).lower()
        return lowered.compile(compiler_options=ALONE)

    def errors(self, program):
        held = state_of(self.heads, self.batch, jax.random.key(2))
        out, after = program(held, *step_of(self.heads, self.batch))
        exact = _expected_of_step(self.heads, self.batch)
        found = np.asarray(out).reshape(exact[0].shape), after.memory_BNHW
        return [distance(*pair) for pair in zip(found, exact)]

    def launches(self, program):
        turns = max(3, int(2 * BYTES / self.limit_bytes))
        make = jax.jit(functools.partial(state_of, self.heads, self.batch))
        states, rest = (
            [make(jax.random.key(i)) for i in range(turns)],
            step_of(self.heads, self.batch),
        )

        def run():
            for i, held in enumerate(states):
                states[i] = program(held, *rest)[1]
            return states

        jax.block_until_ready(run())
        found = launches([run] * REPEATS)
        return [(name, time / (turns * REPEATS)) for name, time in found]


@functools.cache
def _expected_of_step(heads, batch):
    held = state_of(heads, batch, jax.random.key(2))
    return truth_of_step(heads, held, *step_of(heads, batch))


def cases(sweep: bool) -> list:
    """All cases. A sweep is of the longest prompt and each batch, of two shapes."""
    target, found = targets.current(), []
    default = of_family(CHUNK_BLOCKS, target)
    shapes = [name for name in SHAPES if not sweep or name != "nemotron-h-8b"]
    for name, tokens in itertools.product(shapes, TOKENS[-1:] if sweep else TOKENS):
        tried = [default]
        if sweep:
            tried += [dataclasses.replace(default, **change) for change in PROMPT_SWEEP]
        exacts = (False,) if sweep else (False, True)
        found += [Prompt(name, tokens, *pair) for pair in itertools.product(exacts, tried)]
        found += [Prompt(name, tokens, True, None)] * (not sweep)
    for name, batch in itertools.product(shapes, BATCHES):
        tried = [blocks_of(batch * SHAPES[name].heads, target), *(STEP_SWEEP if sweep else [None])]
        found += [Step(name, batch, blocks) for blocks in dict.fromkeys(tried)]
    return found


def _compiled(case):
    try:
        return case.compiled()
    except Exception as error:  # any error of the compiler is reported as the result
        return error


def measured(case, program) -> dict:
    """What a case gives: its errors, and the time and number of each kernel's launches."""
    line = {"case": type(case).__name__.lower(), **dataclasses.asdict(case), "problem": None}
    if isinstance(program, Exception):
        return line | {"problem": f"does not compile: {str(program)[:200]}", "microseconds": {}}
    errors = case.errors(program)
    allowed = ALLOWED[True if case.blocks is None and case.exact is not None else case.exact]
    if not all(error <= most for error, most in zip(errors, allowed)):
        line["problem"] = "WRONG"
    times = {}
    for name, microseconds in case.launches(program):
        times[name] = times.get(name, 0) + microseconds
    if case.blocks is None:
        times = {"all": sum(times.values())}
    return line | {"errors": errors, "microseconds": times}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", action="store_true", help="try several sizes of programs")
    parser.add_argument("--results", type=Path, help="a file to append JSON lines to")
    options = parser.parse_args()
    begin, known = time.perf_counter(), facts()
    found = cases(options.sweep)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        programs = list(pool.map(_compiled, found))
    print(f"compiled {len(found)} cases: {time.perf_counter() - begin:.0f} s", flush=True)
    print(f"copies at {known['copy_gb_per_s']:.0f} GB/s; {known['device']}; microseconds")
    for case, program in zip(found, programs):
        line = known | measured(case, program)
        line["limit"] = case.limit_bytes / known["copy_gb_per_s"] / 1e3
        if options.results:
            with options.results.open("a") as file:  # an interrupted run keeps its results
                file.write(json.dumps(line) + "\n")
        size = line.get("tokens") or line["batch"]
        each = {name: round(time, 2) for name, time in line["microseconds"].items()}
        what = "plain XLA" if case.blocks is None else tuple(dataclasses.astuple(case.blocks))
        print(
            f"{line['case']:<6} {case.name:<16} {size:>4} {case.exact!s:<5} {what!s:<36}"
            f" {sum(each.values()):9.2f}  limit {line['limit']:6.2f}  {each}"
            f" {[f'{error:.0e}' for error in line.get('errors', [])]} {line['problem'] or ''}",
            flush=True,
        )


if __name__ == "__main__":
    main()
