"""Operands that recurrences share, and their checks.

Axes: B batch, C channels of the convolution, L taps, N heads, H rows and W columns of a memory.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

#: Offsets of the Triton backend count elements in signed 32 bits.
MAX_ELEMENTS = 2**31 - 1


class RecurrentState(NamedTuple):
    """The state after the previous tokens.

    Attributes:
        memory_BNHW: float32, a matrix for each head.
        inputs_BLC: The last L - 1 inputs of the convolution, the latest one last.
    """

    memory_BNHW: jax.Array
    inputs_BLC: jax.Array


def require_shape(name: str, array: jax.Array, expected: tuple[int, ...]) -> None:
    """Raises ValueError, with both shapes, for an array with a wrong shape."""
    if array.shape != expected:
        raise ValueError(f"{name} must be {list(expected)}, got {list(array.shape)}")


def require_float32(name: str, array: jax.Array) -> None:
    """Raises ValueError for an array of another dtype."""
    if array.dtype != jnp.float32:
        raise ValueError(f"{name} must be float32, got {array.dtype}")


def require_width(name: str, width: int, widths: tuple[int, ...]) -> None:
    """Raises NotImplementedError for a width that the kernels do not support."""
    if width not in widths:
        known = ", ".join(map(str, widths))
        raise NotImplementedError(f"{name} {width} wide: the kernels know widths of {known}")


def require_elements(shape: tuple[int, ...], elements: int = 0, per: str = "") -> None:
    """Raises NotImplementedError for arrays that the kernels cannot address.

    Args:
        shape: The shape of the memories, for the message.
        elements: The number of elements of the largest other array.
        per: What there is one memory for, for the message.
    """
    if max(math.prod(shape), elements) > MAX_ELEMENTS:
        raise NotImplementedError(
            f"memories of shape {list(shape)}{per}: the kernels address at most"
            f" {MAX_ELEMENTS} elements"
        )
