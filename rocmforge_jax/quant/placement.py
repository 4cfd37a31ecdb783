"""Chooses the layout in which a quantised matrix is fast on a device."""

from typing import Any

import jax

from rocmforge_jax.backends import DEFAULT, Numerics, cpp
from rocmforge_jax.formats import Format
from rocmforge_jax.quant import word_packed


def default_layout(fmt: Format, device: Any = None, numerics: Numerics = DEFAULT) -> str:
    """Returns the layout of a type that is fast on a device, by default the one JAX computes on.

    On a CPU the C++ library reads "groups" and plain XLA is fastest with "columns", so `numerics`
    decides: its backend and its mode of activations.
    """
    platform = platform_of(device)
    if word_packed.can_hold(fmt) and (platform != "cpu" or _in_cpp(fmt, numerics)):
        return "groups"
    return "columns" if platform == "cpu" else "rows"


def platform_of(device: Any = None) -> str:
    """Returns the platform of a device, by default of the one that JAX computes on."""
    return jax.default_backend() if device is None else device.platform


def _in_cpp(fmt: Format, numerics: Numerics) -> bool:
    if numerics.backend not in ("auto", "cpp"):
        return False
    try:
        cpp.require_packing(word_packed.packing(fmt), numerics.activations)
    except NotImplementedError:
        return False
    return True
