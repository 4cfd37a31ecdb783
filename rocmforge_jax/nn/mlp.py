"""Gated feed-forward."""

import jax
import jax.numpy as jnp

from rocmforge_jax import quant


def swiglu(x, gate, up, activations: str = quant.DEFAULT_MODE):
    """silu(x @ gate) * (x @ up) (Shazeer, 2020, arXiv:2002.05202).

    x: [..., D]; gate, up: (D, F), arrays or quantised.

    The activation is computed in float32; the result [..., F] has x's dtype. activations: as for
    `quant.matmul`.
    """
    if gate.shape != up.shape:
        raise ValueError(
            f"swiglu: gate is {list(gate.shape)}, up is {list(up.shape)}: they must be equal"
        )
    return silu_gate(*(quant.matmul(x, weight, activations=activations) for weight in (gate, up)))


def silu_gate(gate, linear):
    """silu(gate) * linear, computed in float32, in the operands' dtype."""
    return (jax.nn.silu(gate.astype(jnp.float32)) * linear.astype(jnp.float32)).astype(linear.dtype)


def swiglu_mlp(x, gate, up, down, activations: str = quant.DEFAULT_MODE):
    """The SwiGLU feed-forward: swiglu(x, gate, up) @ down.

    x: [..., D]; gate, up: (D, F); down: (F, D) -> [..., D].
    """
    return quant.matmul(swiglu(x, gate, up, activations), down, activations=activations)
