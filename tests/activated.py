"""Activation functions in float64 NumPy: the truth for all backends."""

import numpy as np

from pallas_kernels.activation_functions import GELU, RELU2, SILU, swiglu_oai

SWIGLU_OAI = swiglu_oai()
#: Every function, and one with other numbers than gpt-oss has.
FUNCTIONS = {
    "silu": SILU,
    "gelu": GELU,
    "relu2": RELU2,
    "swiglu_oai": SWIGLU_OAI,
    "swiglu_oai of 0.9": swiglu_oai(alpha=0.9, limit=1.25),
}
UNGATED = {name: function for name, function in FUNCTIONS.items() if not function.needs_gate}


def activated(function, gate, up=None):
    """f(gate) * up, or f(gate), as llama.cpp defines it."""
    gate = np.float64(gate)
    if function.name == "swiglu_oai":
        g = np.minimum(gate, function.limit)
        u = np.clip(np.float64(up), -function.limit, function.limit)
        return g * _sigmoid(function.alpha * g) * (u + 1)
    if function.name == "silu":
        y = gate * _sigmoid(gate)
    elif function.name == "relu2":
        y = np.maximum(gate, 0) ** 2
    else:
        y = gate / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * gate * (1 + 0.044715 * gate**2)))
    return y if up is None else y * np.float64(up)


def _sigmoid(x):
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1) / (1 + e)
