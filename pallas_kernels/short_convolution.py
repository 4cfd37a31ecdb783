"""One step of a causal convolution with a short filter per channel, for use in kernels."""

import jax.numpy as jnp

from pallas_kernels import triton


class Window:
    """The last L inputs of some channels of one sequence, including the current token's.

    L is the number of taps. The state [B, L - 1, C] holds the earlier inputs, the latest one last.
    """

    def __init__(self, b, channels, x, state_ref, filters_ref):
        """Loads the earlier inputs and the filters.

        Args:
            b: The index of the sequence.
            channels: int32, the indices of the channels.
            x: the inputs of the current token on these channels.
            state_ref: [B, L - 1, C], the inputs of the tokens before it.
            filters_ref: [L, C]; the last tap applies to the current token.
        """
        self._b, self._channels = b, channels
        self._inputs = [state_ref[b, i, channels] for i in range(state_ref.shape[1])]
        self._inputs.append(x)
        self._filters = [filters_ref[i, channels] for i in range(filters_ref.shape[0])]

    def output(self):
        """Computes the output of the convolution in float32, adding the oldest input first."""
        pairs = zip(self._inputs, self._filters)
        return sum(x.astype(jnp.float32) * tap.astype(jnp.float32) for x, tap in pairs)

    def store(self, state_ref):
        """Writes the inputs that the next token needs to the state."""
        for i, x in enumerate(self._inputs[1:]):
            triton.store(state_ref, (self._b, i, self._channels), x.astype(state_ref.dtype))


def silu(x):
    """Computes x * sigmoid(x) of float32 numbers."""
    return x / (1 + jnp.exp(-x))
