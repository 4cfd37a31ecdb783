"""The target of a kernel: a GPU, or Pallas's interpreter, which computes the same on any device."""

import contextlib
import contextvars
import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Target:
    """platform: "cuda", "rocm" or "interpret".

    architecture: "9.0", "gfx942", ...; "" for the interpreter.
    """

    platform: str
    architecture: str = ""

    @property
    def wave(self) -> int:
        """Threads that run in step: 64 on AMD's gfx9, else 32."""
        return 64 if self.architecture.startswith("gfx9") else 32

    @property
    def overlaps(self) -> bool:
        """Whether a launch may begin while the one before ends.

        NVIDIA calls it programmatic dependent launch.
        """
        return self.platform == "cuda" and int(self.architecture.partition(".")[0] or 0) >= 9

    @property
    def resident(self) -> int:
        """Programs of one warp that fit on it at once, 0 where that is unknown.

        On NVIDIA GPUs 32 for each of the 132 multiprocessors of an H100.
        """
        return 4224 if self.platform == "cuda" else 0

    @property
    def interpret(self) -> bool:
        """Whether it is the interpreter."""
        return self.platform == "interpret"

    def __str__(self):
        return f"{self.platform} {self.architecture}".strip()


def of_family(table: dict, target: Target):
    """The entry of a table for a target's family of GPUs.

    Keys are beginnings of `str(target)`. The longest that fits counts; "" fits every target.
    """
    return table[max((name for name in table if str(target).startswith(name)), key=len)]


INTERPRET = Target("interpret")
_chosen = contextvars.ContextVar("target", default=None)


def current() -> Target | None:
    """The target of kernels that are traced now.

    It is that of `use`, else the GPU that jax computes on, else None.
    """
    return _chosen.get() or of_device(jax.local_devices()[0])


def of_device(device: jax.Device) -> Target | None:
    """The target of a device, None for one that runs no kernels."""
    if device.platform not in ("gpu", "cuda", "rocm"):
        return None
    architecture = str(getattr(device, "compute_capability", ""))
    return Target("rocm" if architecture.startswith("gfx") else "cuda", architecture)


@contextlib.contextmanager
def use(target: Target):
    """Trace for another target than the device: the interpreter, or a GPU that is not there."""
    token = _chosen.set(target)
    try:
        yield target
    finally:
        _chosen.reset(token)
