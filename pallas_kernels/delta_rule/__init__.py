"""The gated delta net: convolution, gated delta rule, norm and gate.

`rocmforge_jax.nn` implements the same in plain jnp, for any number of tokens. It is the reference
for the kernels, and their fallback.
"""

from pallas_kernels.delta_rule.api import launches_of_step, step
from pallas_kernels.delta_rule.operands import DeltaHeads, DeltaState, Parameters, Token

__all__ = ["DeltaHeads", "Parameters", "DeltaState", "Token", "launches_of_step", "step"]
