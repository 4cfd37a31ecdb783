"""The command `bench`."""

import collections
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from rocmforge_jax.cli import common
from rocmforge_jax.gguf import open_gguf
from rocmforge_jax.locate import resolve

NAME = "bench"
HELP = "Measure a model: prefill and decode, tokens per second, on random token ids."
#: Name in the result -> description, for the output without --json.
ROWS = {
    "load_seconds": "load, s",
    "compile_seconds": "compile, s",
    "prefill_tokens_per_s": "prefill, tokens/s",
    "decode_tokens_per_s": "decode, tokens/s",
    "decode_gb_per_s": "decode reads, GB/s",
}


def add_arguments(parser):
    parser.add_argument("file", metavar="FILE", help=f"{common.MODEL}; it needs no tokenizer")
    parser.add_argument(
        "--prompt-tokens",
        type=int,
        default=128,
        metavar="N",
        help="length of the prompt (default: %(default)s)",
    )
    parser.add_argument(
        "--tokens",
        type=int,
        default=128,
        metavar="N",
        help="tokens to generate (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=5,
        metavar="N",
        help="the median of so many runs is given (default: %(default)s)",
    )
    common.add_context_length(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options):
    sizes = options.prompt_tokens, options.tokens, options.repeats
    result = measure(options.file, *sizes, common.context_length(options))
    if options.json:
        common.print_json(result)
        return
    for name, words in ROWS.items():
        print(f"{words:<20} {result[name]:>10.2f}")


def measure(
    file: str, prompt_tokens: int, tokens: int, repeats: int, context_length: int | None = None
) -> dict:
    """Loads a file and measures its speed. Announces the measurement on stderr.

    The result contains medians over `repeats` runs, after a first run that compiles:
    prefill_tokens_per_s is the prompt's tokens divided by the time to the first new one.
    decode_tokens_per_s covers the `tokens` after that. decode_gb_per_s is the rate at which these
    read weights. compile_seconds is how much longer the first run took.

    Args:
        file: The model.
        prompt_tokens: The length of the random prompt.
        tokens: The number of tokens to generate, greedily, for one sequence.
        repeats: The number of measured runs.
        context_length: The context length; None for the model's own.

    Returns:
        The facts and measurements by name.

    Raises:
        UsageError: The numbers do not fit the model.
    """
    import jax
    from flax import nnx

    from rocmforge_jax.generate import Engine
    from rocmforge_jax.models import load_decoder, read_config

    jax.devices()  # starts the device, which should not count as loading
    gguf, open_seconds = _timed(lambda: open_gguf(resolve(file)))
    config, _ = read_config(gguf, context_length)
    longest = config.text_length(context_length or config.context_length)
    _check(longest, prompt_tokens, tokens, repeats)
    facts = _facts(gguf) | {"prompt_tokens": prompt_tokens, "tokens": tokens, "repeats": repeats}
    _announce(facts)
    decoder, load_seconds = _timed(lambda: load_decoder(gguf, context_length=context_length))
    _, rest = _timed(lambda: jax.block_until_ready(nnx.state(decoder)))
    engine, prompt = (
        Engine(decoder, context_length=context_length),
        np.random.default_rng(0).integers(0, config.vocabulary, prompt_tokens).tolist(),
    )
    with common.usage_errors():
        engine.check_generates()
    first, *runs = [_run(engine, prompt, tokens) for _ in range(repeats + 1)]
    prefill, decode = (statistics.median(times) for times in zip(*runs))
    return facts | {
        "open_seconds": open_seconds,
        "load_seconds": load_seconds + rest,
        "compile_seconds": max(sum(first) - prefill - decode, 0.0),
        "prefill_tokens_per_s": prompt_tokens / prefill,
        "decode_tokens_per_s": tokens / decode,
        "decode_gb_per_s": facts["bytes_per_token"] * tokens / decode / 1e9,
    }


#: Tensors of which a token reads one row.
_ROWS = ("position_embd.weight", "token_types.weight", "per_layer_token_embd.weight")


def bytes_per_token(gguf) -> int:
    """Returns the bytes of weights that a decode step of one sequence must read.

    Only the experts in use count. Embeddings do not, except one that is also the head: a token
    reads a row of each.
    """
    experts = gguf.metadata.get(f"{gguf.architecture}.expert_count", 0)
    used = gguf.metadata.get(f"{gguf.architecture}.expert_used_count", 0)
    total = 0
    for name, tensor in gguf.tensors.items():
        if "_exps." in name and experts:
            total += tensor.nbytes * used // experts
        elif name == "token_embd.weight" and "output.weight" in gguf.tensors:
            continue
        elif name not in _ROWS:
            total += tensor.nbytes
    return total


def _check(context_length, prompt_tokens, tokens, repeats):
    for name, value in (
        ("--prompt-tokens", prompt_tokens),
        ("--tokens", tokens),
        ("--repeats", repeats),
    ):
        if value < 1:
            raise common.UsageError(f"{name} must be at least 1, got {value}")
    needed = prompt_tokens + tokens + 1
    if needed > context_length:
        raise common.UsageError(
            f"{prompt_tokens} + {tokens} + 1 tokens are {needed}, the context is {context_length}"
        )


def _facts(gguf) -> dict:
    import jax

    device = jax.local_devices()[0]
    return {
        "model": gguf.path.name,
        "architecture": gguf.architecture,
        "bytes": sum(tensor.nbytes for tensor in gguf.tensors.values()),
        "bytes_per_token": bytes_per_token(gguf),
        "platform": device.platform,
        "device": _processor() if device.platform == "cpu" else device.device_kind,
        "versions": (
            {name: common.version(name) for name in ("rocmforge-jax", "jax", "jaxlib")}
            | {"python": sys.version.split()[0]}
        ),
    }


def _processor() -> str:
    """Returns the processor's name and its number of threads."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(
            line.partition(":")[2].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):  # not on Linux, or not x86
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} threads"


def _run(engine, prompt, tokens) -> tuple[float, float]:
    """Returns the seconds to the first token, and the seconds for `tokens` more after it."""
    from rocmforge_jax.generate import SamplingParams

    engine.forget()  # the cache of the previous run contains the same prompt
    steps = engine.generate([prompt], SamplingParams(temperature=0.0), max_tokens=tokens + 1)
    _, prefill = _timed(lambda: next(steps))
    _, decode = _timed(lambda: collections.deque(steps, maxlen=0))
    return prefill, decode


def _timed(call):
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def _announce(facts):
    print(
        f"{facts['model']}: {facts['architecture']}, {facts['bytes']:,} bytes; a token reads"
        f" {facts['bytes_per_token']:,} bytes of weights\n{facts['prompt_tokens']} tokens of"
        f" prompt, {facts['tokens']} generated, {facts['repeats']} times after a run that compiles;"
        f" {facts['device']}, jax {facts['versions']['jax']}",
        file=sys.stderr,
    )
