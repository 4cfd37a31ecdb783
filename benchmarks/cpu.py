"""Compares speed and memory on the CPU with llama.cpp, on the same files.

    python benchmarks/cpu.py [--models demo qwen2.5-0.5b:q4_0 ...]

Each package runs in its own process and keeps its model loaded. The packages take turns, so that
other load on the machine affects both equally. Missing files are created with the shapes of real
models and random weights.

Prints a table with the goals, and appends one line per file, with all samples, to
benchmarks/results/cpu.jsonl. llama.cpp is used through the package llama-cpp-python; without it,
only rocmforge_jax is measured.
"""

import argparse
import collections
import contextlib
import datetime
import importlib.util
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cpu_goals
import synthetic
from cpu_goals import OURS, THEIRS
from opening import processor

from rocmforge_jax.cli.common import version
from rocmforge_jax.gguf import open_gguf
from rocmforge_jax.locate import cache_folder, resolve

HERE = Path(__file__).parent
RESULTS, PYTHON = HERE / "results" / "cpu.jsonl", platform.python_version()
MODELS = (
    "demo",
    "qwen2.5-0.5b:q4_0",
    "qwen2.5-0.5b:q5_1",
    "qwen2.5-0.5b:q8_0",
    "llama-3.2-1b:q4_k_m",
    "llama-3.2-1b:q6_k",
    "llama-3.2-1b:q8_0",
)
#: name -> tokens of the prompt, and tokens after the first generated one. The latter are timed; if
#: there are none, the prompt is timed.
RUNS = {
    "decode_tokens_per_s": (128, 64),
    "prefill_128_tokens_per_s": (128, 0),
    "prefill_512_tokens_per_s": (512, 0),
}
#: The measurements of a start: seconds to the first and the last token of a short answer, and the
#: peak memory until then.
STARTS = ("first_token_seconds", "answer_seconds", "peak_rss_bytes")
#: Seconds to wait before each run, so that threads that spin while idle have stopped.
PAUSE = 0.2


class Worker:
    """A process of cpu_workers.py that has loaded a file.

    Times are from before the process was there.
    """

    def __init__(self, package: str, path: Path, threads: int, cache: Path):
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(cache)}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        # Modules are compiled, as after an installation. The first start writes them.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        # The user's folder for the C++ library, independent of the temporary XDG_CACHE_HOME.
        environment.setdefault("ROCMFORGE_CPP_FOLDER", str(cache_folder() / "cpp"))
        command = [
            sys.executable,
            HERE / "cpu_workers.py",
            package,
            path,
            "--threads",
            str(threads),
        ]
        self.name, start = f"{package} on {path.name}", time.perf_counter()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._answer()
        self.first_token_seconds = time.perf_counter() - start
        self.peak_rss_bytes = self._answer()["peak_rss_bytes"]
        self.answer_seconds = time.perf_counter() - start

    def ask(self, prompt: int, tokens: int) -> dict:
        self._process.stdin.write(json.dumps({"prompt": prompt, "tokens": tokens}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with exit code {self._process.wait()}")
        return json.loads(line)

    def close(self):
        self._process.communicate()


def model_file(model: str, folder: Path) -> Path:
    """The file of "demo", of a path, or of "shape:type", made if need be."""
    shape, _, type_name = model.partition(":")
    if not type_name:
        return resolve(model)
    path = folder / f"synthetic-{shape}-{type_name}.gguf"
    if not path.exists():
        print(f"making {path}", file=sys.stderr)
        folder.mkdir(parents=True, exist_ok=True)
        synthetic.write(shape, type_name, path)
    return path


def started(samples: dict, prefix: str, package: str, *where):
    """Start a process and end it; how long the start took, and memory, become samples."""
    with contextlib.closing(Worker(package, *where)) as worker:
        for name in STARTS:
            samples[prefix + name][package].append(getattr(worker, name))


def starts(
    samples: dict, packages: tuple, path: Path, threads: int, folder: Path, cold: int, warm: int
) -> Path:
    """Starts in turn with an empty and a full compilation cache; returns the full one's folder."""
    for i in range(cold):
        cache = folder / str(i)
        started(samples, "cold_", OURS, path, threads, cache)
    for _ in range(warm):
        for package in packages:
            started(samples, "", package, path, threads, cache)
    return cache


def speeds(
    samples: dict, packages: tuple, path: Path, threads: int, cache: Path, repeats: int
) -> dict[str, float]:
    """Measures tokens per second of each run, the packages in turn.

    Returns:
        package -> the largest share of a processor that it took while it waited.
    """
    idle, runs = dict.fromkeys(packages, 0.0), fitting(path)
    with contextlib.ExitStack() as stack:
        workers = {
            package: stack.enter_context(contextlib.closing(Worker(package, path, threads, cache)))
            for package in packages
        }
        for turn in range(repeats + 1):  # turn 0 is a warm-up: it compiles and touches all memory
            for (name, (prompt, tokens)), (package, worker) in itertools.product(
                runs.items(), workers.items()
            ):
                time.sleep(PAUSE)
                answer = worker.ask(prompt, tokens)
                if turn:
                    samples[name][package].append(
                        tokens / answer["rest_seconds"]
                        if tokens
                        else prompt / answer["first_seconds"]
                    )
                    idle[package] = max(idle[package], answer["idle_share"])
    return idle


def fitting(path: Path) -> dict[str, tuple[int, int]]:
    """The RUNS that a file's context has room for."""
    gguf = open_gguf(path)
    context = gguf.metadata[f"{gguf.architecture}.context_length"]
    for name, (prompt, tokens) in RUNS.items():
        if prompt + tokens >= context:
            print(
                f"{path.name}: {name} of a prompt of {prompt} does not fit its context of"
                f" {context}",
                file=sys.stderr,
            )
    return {
        name: (prompt, tokens)
        for name, (prompt, tokens) in RUNS.items()
        if prompt + tokens < context
    }


def measure(path: Path, packages: tuple, threads: int, repeats: int, cold: int) -> dict:
    """Everything about one file: medians, samples and what they were measured with.

    The date is UTC's.
    """
    samples = collections.defaultdict(lambda: {package: [] for package in packages})
    with tempfile.TemporaryDirectory() as folder:
        cache = starts(samples, packages, path, threads, Path(folder), cold, repeats)
        idle = speeds(samples, packages, path, threads, cache, repeats)
    for package, share in idle.items():
        if share > 0.05 and len(packages) > 1:
            print(
                f"{package} took {share:.0%} of a processor while the other was measured",
                file=sys.stderr,
            )
    medians = {
        name: {package: statistics.median(each) for package, each in both.items() if each}
        for name, both in samples.items()
    }
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "model": path.name,
        "bytes": path.stat().st_size,
        "device": f"{processor()}, {threads} threads",
        "products": products(),
        "repeats": repeats,
        "cold_starts": cold,
        "idle_share": idle,
        "versions": (
            {name: version(name) for name in ("rocmforge-jax", "jax", "jaxlib", "llama-cpp-python")}
            | {"python": PYTHON}
        ),
        "medians": medians,
        "samples": samples,
    }


def products() -> str:
    """What multiplies here: C++ or XLA."""
    doctor = [sys.executable, "-m", "rocmforge_jax", "doctor", "--json"]
    return json.loads(subprocess.run(doctor, stdout=subprocess.PIPE, check=True).stdout)[
        "operations"
    ]["matmul"]


def installed() -> tuple[str, ...]:
    """The packages to measure; says what to do where llama.cpp is missing."""
    if importlib.util.find_spec(THEIRS):
        return (OURS, THEIRS)
    print(
        "llama.cpp is not installed: ours is measured alone. To compare: pip install"
        " llama-cpp-python",
        file=sys.stderr,
    )
    return (OURS,)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models",
        nargs="+",
        default=MODELS,
        metavar="MODEL",
        help="demo, SHAPE:TYPE or a file (default: %(default)s)",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("build/benchmarks"),
        help="where made files are kept (default: %(default)s)",
    )
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="of each package (default: %(default)s)"
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="medians are of so many (default: %(default)s)"
    )
    parser.add_argument(
        "--cold",
        type=int,
        metavar="N",
        help="cold starts (default: --repeats for Llama, 1 for others)",
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="the file to append to (default: %(default)s)"
    )
    options = parser.parse_args()
    packages = installed()
    for path in [model_file(model, options.folder) for model in options.models]:
        cold = options.cold or (options.repeats if "llama" in path.name else 1)
        result = measure(path, packages, options.threads, options.repeats, cold)
        options.results.parent.mkdir(parents=True, exist_ok=True)
        with options.results.open("a") as results:
            print(json.dumps(result), file=results)
        print(cpu_goals.text(result), flush=True)


if __name__ == "__main__":
    main()
