"""xIELU, an activation function that is quadratic for positive inputs (arXiv:2411.13010)."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class XIELU:
    """Computes p x^2 + beta x above 0, and n (exp(min(x, epsilon)) - 1 - x) + beta x below.

    p is softplus(alpha_p) and n is beta + softplus(alpha_n). Only plain XLA supports it.

    Attributes:
        alpha_n: The raw parameter of n, as stored in a file.
        alpha_p: The raw parameter of p, as stored in a file.
        beta: The slope at 0.
        epsilon: The largest exponent.
    """

    alpha_n: float
    alpha_p: float
    beta: float
    epsilon: float

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if not math.isfinite(value):
                raise ValueError(f"{name} of xIELU must be finite, got {value}")

    def __call__(self, x):
        """Computes the function in float32 and returns x's dtype."""
        x32, beta = x.astype(jnp.float32), np.float32(self.beta)
        above = np.float32(np.logaddexp(0, self.alpha_p)) * x32 * x32
        rest = jnp.expm1(jnp.minimum(x32, np.float32(self.epsilon))) - x32
        below = np.float32(self.beta + np.logaddexp(0, self.alpha_n)) * rest
        return (jnp.where(x32 > 0, above, below) + beta * x32).astype(x.dtype)

    def __str__(self):
        return "xielu"
