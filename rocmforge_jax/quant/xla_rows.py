"""Products with a matrix in "rows" or "groups" layout, in plain XLA for GPUs.

They are the reference of the Pallas kernels, and their fallback.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.symbolic_sizes import surely
from rocmforge_jax.quant import word_packed

#: Rows of x up to which the weight is dequantised inside the reduction, once per row, instead of
#: being written out.
FUSED_ROWS = 8


def decode(planes, fmt):
    """Planes [..., N, K/block, *field] -> values [..., N, K] in float32."""

    def program(block):
        return fmt.values(**block)

    field = fmt.fields[0]
    for _ in range(planes[field.name].ndim - len(field.shape)):
        program = jax.vmap(program)
    values = program(planes)
    *lead, blocks, block = values.shape
    return values.reshape(*lead, blocks * block)


def _decoded(w):
    """Returns the dense values.

    They come from behind a barrier: XLA would compute those of a constant while it compiles.
    """
    return _values(jax.lax.optimization_barrier(w.planes), w)


def _values(planes, w):
    if w.layout == "groups":
        return word_packed.decode(planes, w.format)[..., : w.stored_shape[-1]]
    return decode(planes, w.format)


def matmul(x_MK, w):
    """Multiplies [M, K] by the QTensor w, stored [N, K], -> float32 [M, N].

    For up to FUSED_ROWS rows no dense weight is written.
    """
    if not surely(lambda: 0 < x_MK.shape[0] <= FUSED_ROWS):
        dense_NK = _decoded(w).astype(x_MK.dtype)
        return jnp.einsum(
            "mk,nk->mn", x_MK, dense_NK, precision="highest", preferred_element_type=jnp.float32
        )

    def row(x_K):
        # Each row decodes for itself, one after the other: shared by several rows, XLA writes the
        # values or the scales out.
        planes, x_K = jax.lax.optimization_barrier((w.planes, x_K))
        return (_values(planes, w) * x_K.astype(jnp.float32)[None]).sum(axis=1)

    return jax.lax.map(row, x_MK)


def matmul_transposed(g_MN, w):
    """Multiplies [M, N] by the stored [N, K] itself -> float32 [M, K]."""
    dense_NK = _decoded(w).astype(g_MN.dtype)
    return jnp.dot(g_MN, dense_NK, precision="highest", preferred_element_type=jnp.float32)
