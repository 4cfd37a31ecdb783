"""Compilation targets of kernels: a GPU, or Pallas's interpreter, which runs on any device."""

import contextlib
import contextvars
import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Target:
    """A compilation target.

    Attributes:
        platform: "cuda", "rocm" or "interpret".
        architecture: such as "9.0" or "gfx942"; "" for the interpreter.
    """

    platform: str
    architecture: str = ""

    @property
    def wave(self) -> int:
        """Threads per warp, which AMD calls a wave: 64 on gfx9, else 32."""
        return 64 if self.architecture.startswith("gfx9") else 32

    @property
    def is_hopper_or_newer(self) -> bool:
        """Whether the target is an NVIDIA GPU of compute capability 9.0 or higher."""
        return self.platform == "cuda" and int(self.architecture.partition(".")[0] or 0) >= 9

    @property
    def overlaps(self) -> bool:
        """Whether a launch may begin before the previous one ends.

        NVIDIA calls this programmatic dependent launch.
        """
        return self.is_hopper_or_newer

    @property
    def multiplies_bfloat16_pairs(self) -> bool:
        """Whether the GPU has the instruction of `triton.multiply_bfloat16_pairs`."""
        return self.is_hopper_or_newer

    @property
    def multiplies_float32(self) -> bool:
        """Whether matrix units multiply float32, or tensorfloat32 on NVIDIA's."""
        if self.platform == "cuda":
            return int(self.architecture.partition(".")[0] or 0) >= 8
        return self.interpret or self.architecture.startswith("gfx9")

    @property
    def resident(self) -> int:
        """How many programs of one warp fit on the GPU at once; 0 if unknown.

        For all NVIDIA GPUs, the number is that of an H100: 32 on each of 132 multiprocessors.
        """
        return 4224 if self.platform == "cuda" else 0

    @property
    def interpret(self) -> bool:
        """Whether the target is the interpreter."""
        return self.platform == "interpret"

    def __str__(self):
        return f"{self.platform} {self.architecture}".strip()


def of_family(table: dict, target: Target):
    """Look up the entry of a table for a target's GPU family.

    Keys are prefixes of `str(target)`, and the longest match wins; "" matches every target.
    """
    return table[max((name for name in table if str(target).startswith(name)), key=len)]


INTERPRET = Target("interpret")
_chosen = contextvars.ContextVar("target", default=None)


def current() -> Target | None:
    """Return the target of kernels that are traced now.

    This is the target set by `use`, else the GPU that JAX computes on, else None.
    """
    return _chosen.get() or of_device(jax.local_devices()[0])


def of_device(device: jax.Device) -> Target | None:
    """Return the target of a device, or None if the device is not a GPU."""
    if device.platform not in ("gpu", "cuda", "rocm"):
        return None
    architecture = str(getattr(device, "compute_capability", ""))
    return Target("rocm" if architecture.startswith("gfx") else "cuda", architecture)


@contextlib.contextmanager
def use(target: Target):
    """Trace kernels for a chosen target: the interpreter, or a GPU that need not be present."""
    token = _chosen.set(target)
    try:
        yield target
    finally:
        _chosen.reset(token)
