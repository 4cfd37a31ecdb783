"""One token of a causal convolution with a short filter for each channel, within a kernel."""

import jax.numpy as jnp

from pallas_kernels import triton


class Window:
    """The last inputs of some channels of one sequence, the token's own included.

    The state [B, L - 1, C] of a filter of L taps holds the inputs before, the latest one last.
    """

    def __init__(self, b, channels, x_ref, state_ref, filters_ref):
        """Loads the inputs and the filters.

        Args:
            b: The sequence.
            channels: int32, the numbers of the channels.
            x_ref: [B, C], the inputs of the token.
            state_ref: [B, L - 1, C], those of the tokens before.
            filters_ref: [L, C]; the last tap belongs to the token itself.
        """
        self._b, self._channels = b, channels
        self._inputs = [state_ref[b, i, channels] for i in range(state_ref.shape[1])]
        self._inputs.append(x_ref[b, channels])
        self._filters = [filters_ref[i, channels] for i in range(filters_ref.shape[0])]

    def output(self):
        """Computes the sum of the products of filters and inputs, float32, oldest input first."""
        pairs = zip(self._inputs, self._filters)
        return sum(x.astype(jnp.float32) * tap.astype(jnp.float32) for x, tap in pairs)

    def store(self, state_ref):
        """Writes the inputs that the next token needs."""
        for i, x in enumerate(self._inputs[1:]):
            triton.store(state_ref, (self._b, i, self._channels), x.astype(state_ref.dtype))


def silu(x):
    """Computes x * sigmoid(x) of float32 numbers."""
    return x / (1 + jnp.exp(-x))
