"""The gated delta net: convolution, gated delta rule, norm and gate.

`rocmforge_jax.nn` implements the same in plain jnp, for any number of tokens. It is the reference
for the kernels, and their fallback.
"""

from pallas_kernels.delta_rule.api import check_rule, launches_of_step, rule, step
from pallas_kernels.delta_rule.operands import DeltaHeads, Parameters, Token, Tokens
from pallas_kernels.recurrence.operands import RecurrentState

__all__ = [
    "DeltaHeads",
    "Parameters",
    "RecurrentState",
    "Token",
    "Tokens",
    "check_rule",
    "launches_of_step",
    "rule",
    "step",
]
