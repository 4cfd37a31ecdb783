"""What environment variables choose. Imports no jax."""

import os

_KERNELS = {
    "auto": ("triton", "native", "xla"),
    "triton": ("triton",),
    "native": ("native",),
    "xla": ("xla",),
}


class SettingError(ValueError):
    """The value of an environment variable is none that it may have."""


def kernel_order() -> tuple[str, ...]:
    """The implementations of an operation to try, the first first, by ROCMFORGE_KERNELS: see
    `quant.kernels`.
    """
    choice = os.environ.get("ROCMFORGE_KERNELS") or "auto"
    if choice not in _KERNELS:
        raise SettingError(f"ROCMFORGE_KERNELS is one of {', '.join(_KERNELS)}, got {choice!r}")
    return _KERNELS[choice]
