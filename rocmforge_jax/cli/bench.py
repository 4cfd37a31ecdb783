"""Measure a model: prefill and decode, tokens per second, on random token ids."""

import statistics
import sys
import time

import numpy as np

from rocmforge_jax.cli import common
from rocmforge_jax.locate import resolve

NAME = "bench"
#: name in the result -> what it is, for reading without --json.
ROWS = {
    "load_seconds": "load, s",
    "compile_seconds": "compile, s",
    "prefill_tokens_per_s": "prefill, tokens/s",
    "decode_tokens_per_s": "decode, tokens/s",
    "decode_gb_per_s": "decode reads, GB/s",
}


def add_arguments(parser):
    parser.add_argument("file", metavar="FILE", help="a GGUF file, with a tokenizer or without")
    parser.add_argument("--prompt-tokens", type=int, default=128, metavar="N", help="length of the prompt (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=128, metavar="N", help="tokens to generate (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="the median of so many runs is given (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options):
    result = measure(options.file, options.prompt_tokens, options.tokens, options.repeats)
    if options.json:
        common.print_json(result)
        return
    for name, words in ROWS.items():
        print(f"{words:<20} {result[name]:>10.2f}")


def measure(file: str, prompt_tokens: int, tokens: int, repeats: int) -> dict:
    """Load a file and measure it. Says on stderr what it is about to do.

    prefill_tokens_per_s: a prompt of `prompt_tokens`, up to its last logits. decode_tokens_per_s: the `tokens` after the first,
    one sequence, greedy. decode_gb_per_s: bytes of weights that these read. Medians of `repeats`; compile_seconds is how much
    longer the run before them took. UsageError for numbers that do not fit the model.
    """
    for name, value in (("--prompt-tokens", prompt_tokens), ("--tokens", tokens), ("--repeats", repeats)):
        if value < 1:
            raise common.UsageError(f"{name} must be at least 1, got {value}")
    import jax

    from rocmforge_jax.generate import Engine
    from rocmforge_jax.gguf import open_gguf
    from rocmforge_jax.models import load_decoder

    device = jax.devices()[0]
    gguf, open_seconds = _timed(lambda: open_gguf(resolve(file)))
    engine, load_seconds = _timed(lambda: Engine(jax.block_until_ready(load_decoder(gguf))))
    needed = prompt_tokens + tokens + 1
    if needed > engine.context_length:
        raise common.UsageError(f"{prompt_tokens} + {tokens} + 1 tokens are {needed}, the model's context is {engine.context_length}")
    token_bytes = bytes_per_token(gguf)
    facts = {
        "model": gguf.path.name,
        "architecture": gguf.architecture,
        "bytes": sum(tensor.nbytes for tensor in gguf.tensors.values()),
        "bytes_per_token": token_bytes,
        "prompt_tokens": prompt_tokens,
        "tokens": tokens,
        "repeats": repeats,
        "device": device.device_kind,
        "platform": device.platform,
        "versions": {name: common.version(name) for name in ("rocmforge-jax", "jax", "jaxlib")} | {"python": sys.version.split()[0]},
    }
    _announce(facts)
    prompt = np.random.default_rng(0).integers(0, engine.config.vocabulary, prompt_tokens).tolist()
    first, *runs = [_run(engine, prompt, tokens) for _ in range(repeats + 1)]
    prefill, decode = (statistics.median(times) for times in zip(*runs))
    return facts | {
        "open_seconds": open_seconds,
        "load_seconds": load_seconds,
        "compile_seconds": max(sum(first) - prefill - decode, 0.0),
        "prefill_tokens_per_s": prompt_tokens / prefill,
        "decode_tokens_per_s": tokens / decode,
        "decode_gb_per_s": token_bytes * tokens / decode / 1e9,
    }


def bytes_per_token(gguf) -> int:
    """Bytes of weights that one token of one sequence must read: all but an embedding that is not the head as well."""
    unread = "token_embd.weight" if "output.weight" in gguf.tensors else None
    return sum(tensor.nbytes for name, tensor in gguf.tensors.items() if name != unread)


def _run(engine, prompt, tokens) -> tuple[float, float]:
    """Seconds of one prefill and of `tokens` decode steps."""
    import jax

    from rocmforge_jax.generate import SamplingParams

    _, prefill = _timed(lambda: jax.block_until_ready(engine.prefill([prompt])[0]))
    steps = engine.generate([prompt], SamplingParams(temperature=0.0), max_tokens=tokens + 1)
    next(steps)  # the prompt, and the token that follows from it
    _, decode = _timed(lambda: [None for _ in steps])
    return prefill, decode


def _timed(call):
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def _announce(facts):
    print(
        f"{facts['model']}: {facts['architecture']}, {facts['bytes']:,} bytes; a token reads {facts['bytes_per_token']:,} bytes of weights\n"
        f"{facts['prompt_tokens']} tokens of prompt, {facts['tokens']} generated, {facts['repeats']} times after a run that compiles; "
        f"{facts['device']}, jax {facts['versions']['jax']}",
        file=sys.stderr,
    )
