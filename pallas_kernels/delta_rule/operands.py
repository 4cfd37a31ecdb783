"""The operands of a gated delta net.

Axes: B batch, C channels of the convolution, L taps, K key heads, N value heads, H width of keys,
W width of values.
"""

import dataclasses
from typing import NamedTuple

import jax


@dataclasses.dataclass(frozen=True)
class DeltaHeads:
    """The heads, and how value heads share key heads. Hashable.

    The channels of the convolution are the queries of all key heads, then the keys of all key
    heads, then the values of all value heads.

    Attributes:
        key_heads: DeltaHeads of queries and keys, K.
        value_heads: DeltaHeads of values, N, a multiple of K. Each has a memory.
        key_width: Of queries and keys, H.
        value_width: Of values, W.
        grouped: Whether value head n takes key head n // (N / K). If not, it takes n % K.
    """

    key_heads: int
    value_heads: int
    key_width: int
    value_width: int
    grouped: bool

    @property
    def shared(self) -> int:
        """Value heads of a key head, N / K."""
        return self.value_heads // self.key_heads

    @property
    def channels(self) -> int:
        """Channels of the convolution, C."""
        return 2 * self.first_key + self.value_heads * self.value_width

    @property
    def first_key(self) -> int:
        """The channel of the first key: queries come before it, and as many keys after it."""
        return self.key_heads * self.key_width

    def key_head(self, n):
        """Returns the key head of value head n."""
        return n // self.shared if self.grouped else n % self.key_heads

    def value_head(self, k, i: int):
        """Returns the value head that is number i of those of key head k."""
        return k * self.shared + i if self.grouped else i * self.key_heads + k


class Token(NamedTuple):
    """One token of each sequence, as the projections give it, in any float dtypes.

    Attributes:
        qkv_BC: Inputs of the convolution.
        gate_BNW: Before silu.
        beta_BN: Shares by which memories move to values, before sigmoid.
        alpha_BN: Rates of decay, before `dt` is added, softplus and the product with `a`.
    """

    qkv_BC: jax.Array
    gate_BNW: jax.Array
    beta_BN: jax.Array
    alpha_BN: jax.Array


class Parameters(NamedTuple):
    """The parameters of a layer, in any float dtypes.

    Attributes:
        filters_LC: Of the convolution; the last tap belongs to the token itself.
        dt_N: Added to the rates.
        a_N: Multiply the rates; below 0 for a decay.
        scale_W: Of the norm of each head's output.
    """

    filters_LC: jax.Array
    dt_N: jax.Array
    a_N: jax.Array
    scale_W: jax.Array


class DeltaState(NamedTuple):
    """What is left of the tokens before.

    Attributes:
        memory_BNHW: float32, a matrix from keys to values for each value head.
        inputs_BLC: The last L - 1 inputs of the convolution, the latest one last.
    """

    memory_BNHW: jax.Array
    inputs_BLC: jax.Array
