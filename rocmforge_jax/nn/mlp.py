"""Gated feed-forward."""

import jax
import jax.numpy as jnp

from rocmforge_jax import quant


def swiglu(x, gate, up):
    """silu(x @ gate) * (x @ up) (Shazeer, 2020, arXiv:2002.05202). x: [..., D]; gate, up: (D, F), arrays or quantised.

    The activation is computed in float32; the result [..., F] has x's dtype.
    """
    if gate.shape != up.shape:
        raise ValueError(f"swiglu: gate is {list(gate.shape)}, up is {list(up.shape)}: they must be equal")
    return silu_gate(quant.matmul(x, gate), quant.matmul(x, up))


def silu_gate(gate, linear):
    """silu(gate) * linear, computed in float32, in the operands' dtype."""
    return (jax.nn.silu(gate.astype(jnp.float32)) * linear.astype(jnp.float32)).astype(linear.dtype)


def swiglu_mlp(x, gate, up, down):
    """The SwiGLU feed-forward: swiglu(x, gate, up) @ down. x: [..., D]; gate, up: (D, F); down: (F, D) -> [..., D]."""
    return quant.matmul(swiglu(x, gate, up), down)
