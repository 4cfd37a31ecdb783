"""Activation functions of feed-forward layers, for kernels and for plain jnp.

Each function is built from x * sigmoid(z), or needs no exponential.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

_NAMES = ("silu", "gelu", "relu2", "swiglu_oai")


def times_sigmoid(x, z):
    """Computes x * sigmoid(z)."""
    return x * jax.nn.sigmoid(z)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ActivationFunction:
    """An activation function, with or without a gate. Hashable, and a pytree without leaves.

    Attributes:
        name: "silu"; "gelu" (the tanh approximation); "relu2" (relu(x) squared); or "swiglu_oai",
            which needs a gate.
        alpha: For swiglu_oai: the gate is activated as gate * sigmoid(alpha * gate).
        limit: For swiglu_oai: the upper bound of the gate. The linear part is clamped to
            [-limit, limit].
    """

    name: str
    alpha: float = 1.0
    limit: float = math.inf

    def __post_init__(self):
        if self.name not in _NAMES:
            raise ValueError(f"an activation function is {', '.join(_NAMES)}, got {self.name!r}")

    @property
    def needs_gate(self) -> bool:
        """Whether the function requires both a gate and a linear part."""
        return self.name == "swiglu_oai"

    def __call__(self, gate, up=None, times_sigmoid: Callable = times_sigmoid):
        """Computes f(gate) * up, or f(gate) without `up`.

        All functions propagate NaN.

        Args:
            gate: float32.
            up: float32 of the same shape, or None.
            times_sigmoid: A function that computes x * sigmoid(z). A kernel passes its own.

        Raises:
            ValueError: The function needs `up`, which is missing.
        """
        if self.needs_gate:
            return self._swiglu_oai(gate, up, times_sigmoid)
        activated = self._activate(gate, times_sigmoid)
        return activated if up is None else activated * up

    def _activate(self, x, times_sigmoid):
        if self.name == "silu":
            return times_sigmoid(x, x)
        if self.name == "relu2":
            positive = jnp.where(x < 0, np.float32(0), x)
            return positive * positive
        # (1 + tanh(a)) / 2 equals sigmoid(2 a), which avoids cancellation.
        inner = x * (np.float32(1) + np.float32(0.044715) * x * x)
        return times_sigmoid(x, np.float32(2 * math.sqrt(2 / math.pi)) * inner)

    def _swiglu_oai(self, gate, up, times_sigmoid):
        if up is None:
            raise ValueError(f"{self.name} needs a gate and a linear part, got one of them")
        limit = np.float32(self.limit)
        gate = jnp.where(gate > limit, limit, gate)
        up = jnp.where(up > limit, limit, jnp.where(up < -limit, -limit, up))
        return times_sigmoid(gate, np.float32(self.alpha) * gate) * (up + np.float32(1))

    def __str__(self):
        return self.name


#: x * sigmoid(x); with a gate, SwiGLU.
SILU = ActivationFunction("silu")
#: The tanh approximation of GELU; with a gate, GeGLU.
GELU = ActivationFunction("gelu")
#: relu(x) squared.
RELU2 = ActivationFunction("relu2")


def swiglu_oai(alpha: float = 1.702, limit: float = 7.0) -> ActivationFunction:
    """Creates gpt-oss's function: gate * sigmoid(alpha * gate) * (up + 1) of clamped operands."""
    return ActivationFunction("swiglu_oai", alpha, limit)
