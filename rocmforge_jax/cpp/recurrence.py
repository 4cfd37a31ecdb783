"""Single steps of recurrences with a matrix of memory per head: `recurrence.cc` in JAX.

XLA updates the memory in place if possible. All operands are float32. The functions call the
library that `library.load` loaded.
"""

import jax
import jax.numpy as jnp


def delta_step(q_BNH, k_BNH, v_BNW, log_decay_BN, beta_BN, memory_BNHW) -> tuple[jax.Array, ...]:
    """Applies the gated delta rule to one token of each sequence.

    Returns the outputs [B, N, W] and the memory: see `nn.delta_rule`.
    """
    return _call(
        "rocmforge_delta_step", v_BNW, q_BNH, k_BNH, v_BNW, log_decay_BN, beta_BN, memory_BNHW
    )


def scan_step(x_BNH, log_decay_BN, b_BKW, c_BKW, memory_BNHW) -> tuple[jax.Array, ...]:
    """Applies a selective state space to one token of each sequence.

    Returns the outputs [B, N, H] and the memory: see `nn.selective_scan`.
    """
    return _call("rocmforge_scan_step", x_BNH, x_BNH, log_decay_BN, b_BKW, c_BKW, memory_BNHW)


def _call(target: str, like, *operands) -> tuple[jax.Array, ...]:
    """Calls a step whose outputs have the shape of `like`, and whose last operand is the memory."""
    if others := {str(a.dtype) for a in operands} - {"float32"}:
        raise ValueError(f"a recurrence computes in float32, got {', '.join(sorted(others))}")
    outputs = [jax.ShapeDtypeStruct(a.shape, jnp.float32) for a in (like, operands[-1])]
    call = jax.ffi.ffi_call(
        target,
        outputs,
        input_output_aliases={len(operands) - 1: 1},
        vmap_method="sequential",
    )
    return tuple(call(*operands))
