"""Derivatives of kernels, taken from the plain JAX functions that the kernels replace.

They support forward mode, reverse mode and any order.
"""

import functools
from typing import Any

import jax


def differentiable(kernel, *operands) -> Any:
    """Computes kernel(*operands), with the derivatives of kernel.plain(*operands).

    Reverse mode saves only the operands and computes the plain function again.

    Args:
        kernel: A callable whose attribute `plain` computes the same with jax.numpy. It is hashable,
            and equal callables compute the same.
        *operands: Pytrees of arrays.
    """
    return _call(kernel, *operands)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _call(kernel, *operands):
    return kernel(*operands)


@_call.defjvp
def _forward_mode(kernel, operands, tangents):
    # XLA cannot share any computation between the kernel and the plain function, so no barrier is
    # needed between the two.
    plain = jax.checkpoint(kernel.plain, prevent_cse=False)
    return _call(kernel, *operands), jax.jvp(plain, operands, tangents)[1]
