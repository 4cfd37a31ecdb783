"""The epilogue of a product: the scale and bias of each weight, and the activation function."""

import jax.numpy as jnp

from pallas_kernels.activation_functions import ActivationFunction


def finished(of_weights, scales_and_biases, activation: ActivationFunction | None):
    """Apply the scales, the biases and the activation function, in a kernel or outside.

    Args:
        of_weights: the products with each weight, float32.
        scales_and_biases: for each weight, a float32 scale and bias that broadcast, or None.
        activation: the activation function, or None for a single weight.
    """
    scaled = []
    for y, (scale, bias) in zip(of_weights, scales_and_biases):
        y = y if scale is None else y * scale
        scaled.append(y if bias is None else y + bias)
    return scaled[0] if activation is None else activation(*scaled, times_sigmoid=_times_sigmoid)


def _times_sigmoid(x, z):
    return x / (1 + jnp.exp(-z))
