"""Runs one package with a model in a separate process, which answers requests for measurements.

    python benchmarks/cpu_workers.py rocmforge_jax FILE --threads 2

The process prints lines of JSON on stdout. At the start, it generates a short answer and prints one
line at the first token and one after the last. Then it answers requests on stdin, one per line:
{"prompt": 128, "tokens": 64} returns the seconds to the first token and the seconds for the
`tokens` after it. Decoding is greedy, with one sequence and random ids.

`idle_share` is the share of a processor that the process used between its last answer and the
request; it should be 0. llama.cpp is called in the same way as by its own llama-bench, through the
ctypes API of the package llama-cpp-python.
"""

import argparse
import collections
import ctypes
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

#: Tokens of the prompt, and tokens after the first generated one, of the short answer at the start.
START_PROMPT, START_TOKENS = 16, 64
#: llama.cpp's context. It is just long enough for all requests, because llama.cpp allocates all of
#: it.
LONGEST = 768


class RocmforgeJax:
    """The engine as the command line uses it, with the user's compilation cache."""

    def __init__(self, path: Path, threads: int):
        from rocmforge_jax.cli.common import prepare_jax

        prepare_jax(str(path))
        from rocmforge_jax.generate import Engine, SamplingParams
        from rocmforge_jax.gguf import open_gguf
        from rocmforge_jax.models import load_decoder

        self._engine, self._greedy = (
            Engine(load_decoder(open_gguf(path))),
            SamplingParams(temperature=0.0),
        )
        self.vocabulary = self._engine.config.vocabulary

    def steps(self, prompt: list[int], tokens: int):
        """An iterator: the first step is the first token, the rest are the `tokens` after it."""
        self._engine.forget()  # otherwise the prefix cache of the previous run would be used
        return self._engine.generate([prompt], self._greedy, max_tokens=tokens + 1)


class LlamaCpp:
    """llama.cpp with its defaults, but for the threads and a context that is just long enough."""

    def __init__(self, path: Path, threads: int):
        import llama_cpp

        self._api = llama_cpp
        self._log = llama_cpp.llama_log_callback(_log_errors)  # keep a reference for llama.cpp
        llama_cpp.llama_log_set(self._log, None)
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(
            os.fsencode(path), llama_cpp.llama_model_default_params()
        )
        if not model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = min(LONGEST, llama_cpp.llama_model_n_ctx_train(model))
        settings.n_batch = settings.n_ubatch = 512
        settings.n_threads = settings.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(model, settings)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def steps(self, prompt: list[int], tokens: int):
        """As of RocmforgeJax; one token a step."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), False)
        yield (token := self._next(prompt))
        for _ in range(tokens):
            yield (token := self._next([token]))

    def _next(self, ids: list[int]) -> int:
        tokens = (self._api.llama_token * len(ids))(*ids)  # keep a reference for the batch
        if code := self._api.llama_decode(
            self._context, self._api.llama_batch_get_one(tokens, len(ids))
        ):
            raise RuntimeError(f"llama_decode returned {code}")
        logits = self._api.llama_get_logits_ith(self._context, -1)
        return int(
            np.ctypeslib.as_array(
                ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (self.vocabulary,)
            ).argmax()
        )


PACKAGES = {"rocmforge_jax": RocmforgeJax, "llama_cpp": LlamaCpp}


def _log_errors(level, text, _):
    if level == 4:  # GGML_LOG_LEVEL_ERROR
        print(text.decode("utf-8", "replace"), end="", file=sys.stderr)


def peak_rss() -> int:
    """The most memory this process ever had in use, in bytes, pages of mapped files among it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (
        OSError,
        StopIteration,
    ):  # not Linux. On Linux, getrusage would include the parent's memory before exec
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1 if sys.platform == "darwin" else 1024
        )


def run(model, prompt: int, tokens: int, at_first=lambda: None) -> dict:
    """Seconds to the first token after `prompt` random ids, and for the `tokens` after it."""
    ids = np.random.default_rng(0).integers(0, model.vocabulary, prompt).tolist()
    start = time.perf_counter()
    steps = model.steps(ids, tokens)
    next(steps)
    first = time.perf_counter()
    at_first()
    collections.deque(steps, maxlen=0)
    return {"first_seconds": first - start, "rest_seconds": time.perf_counter() - first}


def say(**values):
    print(json.dumps(values), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", choices=PACKAGES)
    parser.add_argument("file", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # XLA starts one thread per processor that it may use
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    model = PACKAGES[options.package](options.file, options.threads)
    run(model, START_PROMPT, START_TOKENS, at_first=lambda: say(first_token=True))
    say(peak_rss_bytes=peak_rss())
    used, since = time.process_time(), time.perf_counter()
    for line in sys.stdin:
        idle_share = (time.process_time() - used) / (time.perf_counter() - since)
        say(**run(model, **json.loads(line)), idle_share=idle_share)
        used, since = time.process_time(), time.perf_counter()


if __name__ == "__main__":
    main()
