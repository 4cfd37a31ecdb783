"""How the product of a query and a key becomes the exponent of its weight, and which slots a query
sees.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

#: GPUs have 2^x, not e^x, as an instruction: e^x = 2^(x * LOG2_E).
LOG2_E = math.log2(math.e)
#: An exponent below every other, and finite, so that no -inf is subtracted from another where
#: nothing is seen.
LOWEST = np.float32(-1e30)


@dataclasses.dataclass(frozen=True)
class Scoring:
    """scale: of the products.

    window: slots that a query sees, its own included; None for all. soft_cap: c * tanh(score / c).
    """

    scale: float
    window: int | None = None
    soft_cap: float | None = None

    def exponents(self, products):
        """float32 products, of any shape -> logarithms, to base 2, of the weights before they are
        normalised.
        """
        if self.soft_cap is None:
            return products * np.float32(self.scale * LOG2_E)
        return _tanh(products * np.float32(self.scale / self.soft_cap)) * np.float32(
            self.soft_cap * LOG2_E
        )

    def sees(self, positions, slots):
        """bool: whether queries at `positions` see `slots`; the two broadcast."""
        seen = slots <= positions
        return seen if self.window is None else seen & (slots > positions - self.window)


def _tanh(x):
    """With exp2, which has no special cases to branch for: 2 / (1 + e^-2x) - 1.

    Its absolute error is a rounding of 1.
    """
    return 2 / (1 + jnp.exp2(x * np.float32(-2 * LOG2_E))) - 1
