"""Gated feed-forward."""

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
        up: As `gate`.
        activations: As for `quant.matmul`.
        backend: As for `quant.matmul`.

    Returns:
        [..., F] in x's dtype; the activation function is computed in float32.
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
        up: The linear part, of the same shape and dtype, or None.
        activation: The activation function.

    Returns:
        The result in the operands' dtype.
    """
    operands = (gate,) if up is None else (gate, up)
    return activation(*(operand.astype(jnp.float32) for operand in operands)).astype(gate.dtype)


def swiglu_mlp(
    x, gate, up, down, activations: str = DEFAULT.activations, backend: str | None = None
):
    """Computes the SwiGLU feed-forward swiglu(x, gate, up) @ down -> [..., D].

    x is [..., D]; gate and up are (D, F), down is (F, D). The rest is as for `swiglu`.
    """
    hidden = swiglu(x, gate, up, activations, backend)
    return quant.matmul(hidden, down, activations=activations, backend=backend)
