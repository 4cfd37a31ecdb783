"""Gated feed-forward."""

import jax
import jax.numpy as jnp

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
    multiplied = [
        quant.matmul(x, weight, activations=activations, backend=backend) for weight in (gate, up)
    ]
    return silu_gate(*multiplied)


def silu_gate(gate, linear):
    """Computes silu(gate) * linear in float32 and returns it in the operands' dtype."""
    activated = jax.nn.silu(gate.astype(jnp.float32)) * linear.astype(jnp.float32)
    return activated.astype(linear.dtype)


def swiglu_mlp(
    x, gate, up, down, activations: str = DEFAULT.activations, backend: str | None = None
):
    """Computes the SwiGLU feed-forward swiglu(x, gate, up) @ down -> [..., D].

    x is [..., D]; gate and up are (D, F), down is (F, D). The rest is as for `swiglu`.
    """
    hidden = swiglu(x, gate, up, activations, backend)
    return quant.matmul(hidden, down, activations=activations, backend=backend)
