"""The operands of a selective state space.

Axes: B batch, T tokens, F outputs of the projection, C channels of the convolution, L taps, N
heads, K groups, H width of a head, W width of a state, I width of all heads, N * H.
"""

import dataclasses
from typing import NamedTuple

import jax


@dataclasses.dataclass(frozen=True)
class ScanHeads:
    """The heads of a selective state space, and the groups that share directions. Hashable.

    The projection computes the gates of all heads, then the channels of the convolution, then a
    time step for each head. The channels are the inputs x of all heads, then the directions b of
    all groups, then the directions c of all groups.

    Attributes:
        heads: The number of heads, N. Each has a memory.
        groups: The number of groups, K, a divisor of N. N / K consecutive heads share b and c.
        head_width: The width of a head's input and output, H.
        state_width: The width of the directions, W.
    """

    heads: int
    groups: int
    head_width: int
    state_width: int

    @property
    def shared(self) -> int:
        """The number of heads per group, N / K."""
        return self.heads // self.groups

    @property
    def inner(self) -> int:
        """The width of all heads, I."""
        return self.heads * self.head_width

    @property
    def group_width(self) -> int:
        """The width of the heads of a group, I / K."""
        return self.shared * self.head_width

    @property
    def channels(self) -> int:
        """The number of channels of the convolution, C."""
        return self.inner + 2 * self.groups * self.state_width

    @property
    def projected(self) -> int:
        """The number of outputs of the projection, F."""
        return self.inner + self.channels + self.heads


class Parameters(NamedTuple):
    """The parameters of a layer, in any float dtypes.

    Attributes:
        filters_LC: The filters of the convolution; the last tap applies to the token itself.
        bias_C: Added to the outputs of the convolution, or None.
        dt_N: Added to the time steps before softplus.
        a_N: The rates of the memories; negative for a decay.
        d_N: The factors of x in the outputs.
        scale_I: The scale of the norm of each group's gated outputs. None: there is no norm.
    """

    filters_LC: jax.Array
    bias_C: jax.Array | None
    dt_N: jax.Array
    a_N: jax.Array
    d_N: jax.Array
    scale_I: jax.Array | None


class Tokens(NamedTuple):
    """The operands of the scan for T tokens of each sequence, float32.

    Attributes:
        x_BTNH: The inputs of the heads.
        dt_BTN: The time steps, at least 0.
        b_BTKW: The directions along which tokens are written.
        c_BTKW: The directions along which memories are read.
    """

    x_BTNH: jax.Array
    dt_BTN: jax.Array
    b_BTKW: jax.Array
    c_BTKW: jax.Array
