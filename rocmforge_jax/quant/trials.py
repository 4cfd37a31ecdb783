"""Whether kernels work on this device: each is tried on a small case, against plain XLA, before its
first use.

A trial takes half a second of tracing. So a kernel that passed is not tried again by programs that
start later: a file in the user's cache folder has its name. The file's own name is a hash of what a
finding rests on: the kernels' source, jax, what it compiles with and the device.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import os
import warnings
from pathlib import Path

import jax
import jaxlib

import pallas_kernels
from pallas_kernels import targets
from pallas_kernels.targets import Target
from rocmforge_jax.locate import cache_folder


def require_working(what: str, target: Target, error, allowed: float) -> None:
    """NotImplementedError for a kernel that does not compile on this device, or whose error() on a
    small case is above `allowed`.

    what: its name, under which the finding is kept. Only the device itself can say: for any other
    target nothing is tried.
    """
    if target != targets.of_device(jax.devices()[0]):
        return
    if (what, target) not in _findings:
        _findings[what, target] = None if _passed(what) else _finding(what, target, error, allowed)
        if _findings[what, target]:
            warnings.warn(f"{_findings[what, target]}. Plain XLA stands in.", stacklevel=3)
    if _findings[what, target]:
        raise NotImplementedError(_findings[what, target])


#: (kernel, target) -> why it cannot be used, None if it can.
_findings: dict[tuple[str, Target], str | None] = {}


def _finding(what, target, error, allowed):
    # In a thread of its own, where nothing is being traced.
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        try:
            found = float(
                thread.submit(jax.jit(error)).result()
            )  # as one program: op by op it would be compiled for seconds
        except Exception as problem:  # whatever a compiler or driver says
            return (
                f"{what} does not run on {target}: {type(problem).__name__}: {str(problem)[:500]}"
            )
    if not found <= allowed:
        return (
            f"{what} is wrong on {target}: its relative error is {found:.1e}, allowed {allowed:.0e}"
        )
    _remember(what)
    return None


def _file() -> Path:
    return cache_folder() / "trials" / f"{_key()}.txt"


@functools.cache
def _key() -> str:
    device, folder = jax.devices()[0], Path(pallas_kernels.__file__).parent
    how = [
        jax.__version__,
        jaxlib.__version__,
        device.client.platform_version,
        device.device_kind,
        os.environ.get("XLA_FLAGS", ""),
    ]
    sources = [path.read_bytes() for path in sorted(folder.rglob("*.py"))]
    return hashlib.sha256(b"\0".join([*map(str.encode, how), *sources])).hexdigest()[:16]


def _passed(what: str) -> bool:
    """In a program before this one."""
    try:
        return what in _file().read_text().splitlines()
    except OSError:
        return False


def _remember(what: str) -> None:
    with contextlib.suppress(OSError):  # a folder that is read only: every program tries
        _file().parent.mkdir(parents=True, exist_ok=True)
        with _file().open("a") as file:
            file.write(f"{what}\n")
