"""GEMV for AMD GPUs in Triton's own language: a way without Pallas's deprecated Triton backend.

Nothing chooses this kernel by itself: call `multiply`. It needs the packages of the extra
`jax-triton`, which are imported at the first call.
"""

from pallas_kernels.jax_triton.api import multiply

__all__ = ["multiply"]
