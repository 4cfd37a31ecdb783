"""Measures the times of GPU kernels with a profiler trace."""

import collections
import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax


def kernel_times(run: Callable, repeats: int = 10) -> dict[str, tuple[float, float]]:
    """Traces the kernels that run() starts on a GPU.

    Returns:
        kernel -> (microseconds a launch, launches a run), the largest total time first.
    """
    jax.block_until_ready(run())
    durations = collections.defaultdict(list)
    for name, duration in launches([run] * repeats):
        durations[name].append(duration)
    times = {name: (sum(each) / len(each), len(each) / repeats) for name, each in durations.items()}
    return dict(sorted(times.items(), key=lambda item: -item[1][0] * item[1][1]))


def launches(runs: list[Callable]) -> list[tuple[str, float]]:
    """(kernel, microseconds) of all that the runs start on a GPU, in the order in which they end.

    One trace, which takes seconds, may have many runs. What begins while another runs, as launches
    do that wait for the one before, counts from the end of that.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = options.host_tracer_level = (
        0  # events of the host are not needed, and slow to write
    )
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True, profiler_options=options):
            for run in runs:
                jax.block_until_ready(run())
        (file,) = Path(folder).rglob("perfetto_trace.json.gz")
        events = json.loads(gzip.decompress(file.read_bytes()))
    events = events["traceEvents"] if isinstance(events, dict) else events
    streams = _streams(events)
    found = [
        event
        for event in events
        if event.get("ph") == "X" and (event["pid"], event["tid"]) in streams
    ]
    return one_after_the_other(
        [(event["name"], event["ts"], event["ts"] + event["dur"]) for event in found]
    )


def one_after_the_other(found: list[tuple[str, float, float]]) -> list[tuple[str, float]]:
    """Turns (name, begin, end) into (name, own time), in the order in which they end.

    A kernel that begins while another one runs counts from the end of that one.
    """
    times, last = [], 0
    for name, begin, end in sorted(found, key=lambda launch: (launch[2], launch[1])):
        times.append((name, end - max(begin, last)))
        last = end
    return times


def _streams(events) -> set:
    """(process, thread) of the streams of GPUs."""
    names = {"process_name": {}, "thread_name": {}}
    for event in events:
        if event.get("ph") == "M" and event["name"] in names:
            names[event["name"]][event["pid"], event.get("tid")] = event["args"].get("name", "")
    gpus = {pid for (pid, _), name in names["process_name"].items() if "GPU" in name}
    return {
        key for key, name in names["thread_name"].items() if key[0] in gpus and "Stream" in name
    }
