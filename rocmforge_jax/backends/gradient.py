"""Gives functions of compiled code the derivatives of the plain functions that they stand for.

Both mechanisms hold for forward mode, reverse mode and any order of them.
"""

import functools
from typing import Any

import jax


def differentiable(kernel, *operands) -> Any:
    """Computes kernel(*operands), with the derivatives of kernel.plain(*operands).

    Reverse mode keeps the operands alone and computes the plain function again.

    Args:
        kernel: A callable whose attribute `plain` computes the same with jax.numpy. It is hashable
            by what it computes.
        *operands: Pytrees of arrays.
    """
    return _call(kernel, *operands)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _call(kernel, *operands):
    return kernel(*operands)


@_call.defjvp
def _forward_mode(kernel, operands, tangents):
    # Nothing that the kernel computes is a part of the plain function that XLA could share, so no
    # barrier is needed between the two.
    plain = jax.checkpoint(kernel.plain, prevent_cse=False)
    return _call(kernel, *operands), jax.jvp(plain, operands, tangents)[1]
