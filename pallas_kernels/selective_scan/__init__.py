"""The selective state space of Mamba 2: convolution, scan, gate and norm.

`rocmforge_jax.nn` implements the same in plain jnp, for any number of tokens. It is the reference
for the kernels, and their fallback.
"""

from pallas_kernels.recurrence.operands import RecurrentState
from pallas_kernels.selective_scan.api import check_scan, check_step, scan, step
from pallas_kernels.selective_scan.operands import Parameters, ScanHeads, Tokens

__all__ = [
    "Parameters",
    "RecurrentState",
    "ScanHeads",
    "Tokens",
    "check_scan",
    "check_step",
    "scan",
    "step",
]
