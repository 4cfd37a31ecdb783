"""Times of GPU kernels from a profiler trace."""

import collections
import gzip
import json
import tempfile
from pathlib import Path

import jax


def kernel_times(run, repeats: int = 10) -> dict[str, tuple[float, float]]:
    """{kernel: (microseconds a launch, launches a run)} of the kernels that run() starts on a GPU, the longest in all first."""
    jax.block_until_ready(run())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            for _ in range(repeats):
                jax.block_until_ready(run())
        (file,) = Path(folder).rglob("perfetto_trace.json.gz")
        events = json.loads(gzip.decompress(file.read_bytes()))
    events = events["traceEvents"] if isinstance(events, dict) else events
    durations = collections.defaultdict(list)
    streams = _streams(events)
    for event in events:
        if event.get("ph") == "X" and (event["pid"], event["tid"]) in streams:
            durations[event["name"]].append(event["dur"])
    times = {name: (sum(each) / len(each), len(each) / repeats) for name, each in durations.items()}
    return dict(sorted(times.items(), key=lambda item: -item[1][0] * item[1][1]))


def _streams(events) -> set:
    """(process, thread) of the streams of GPUs."""
    names = {"process_name": {}, "thread_name": {}}
    for event in events:
        if event.get("ph") == "M" and event["name"] in names:
            names[event["name"]][event["pid"], event.get("tid")] = event["args"].get("name", "")
    gpus = {pid for (pid, _), name in names["process_name"].items() if "GPU" in name}
    return {key for key, name in names["thread_name"].items() if key[0] in gpus and "Stream" in name}
