"""Gated feed-forward layers."""

import functools

import jax.numpy as jnp

from pallas_kernels.activation_functions import SILU, ActivationFunction
from rocmforge_jax import quant
from rocmforge_jax.backends import DEFAULT


def swiglu(x, gate, up, activations: str = DEFAULT.activations, backend: str | None = None):
    """Computes silu(x @ gate) * (x @ up) (Shazeer, 2020, arXiv:2002.05202).

    Args:
        x: [..., D].
        gate: (D, F), an array or quantised.
        up: (D, F), like `gate`.
        activations: See `quant.matmul`.
        backend: See `quant.matmul`.

    Returns:
        [..., F] in x's dtype. The activation function is computed in float32.

    Raises:
        ValueError: gate and up differ in shape.
    """
    if gate.shape != up.shape:
        raise ValueError(
            f"swiglu: gate is {list(gate.shape)}, up is {list(up.shape)}: they must be equal"
        )
    multiply = functools.partial(quant.matmul, x, activations=activations, backend=backend)
    return gated(multiply(gate), multiply(up))


def gated(gate, up=None, activation: ActivationFunction = SILU):
    """Computes activation(gate) * up, or activation(gate), in float32.

    Args:
        gate: The gate, or the only operand.
        up: The factor of the activated gate, of the same shape and dtype, or None.
        activation: The activation function.

    Returns:
        The result in the operands' dtype.
    """
    operands = (gate,) if up is None else (gate, up)
    return activation(*(operand.astype(jnp.float32) for operand in operands)).astype(gate.dtype)


def swiglu_mlp(
    x, gate, up, down, activations: str = DEFAULT.activations, backend: str | None = None
):
    """Computes the SwiGLU feed-forward swiglu(x, gate, up) @ down.

    Args:
        x: [..., D].
        gate: (D, F), an array or quantised.
        up: (D, F), like `gate`.
        down: (F, D), like `gate`.
        activations: See `quant.matmul`.
        backend: See `quant.matmul`.

    Returns:
        [..., D] in x's dtype.
    """
    hidden = swiglu(x, gate, up, activations, backend)
    return quant.matmul(hidden, down, activations=activations, backend=backend)
