"""The operands of a gated delta net.

Axes: B batch, C channels of the convolution, L taps, K key heads, N value heads, H width of keys,
W width of values.
"""

import dataclasses
from typing import NamedTuple

import jax


@dataclasses.dataclass(frozen=True)
class DeltaHeads:
    """The heads of a gated delta net, and how value heads share key heads. Hashable.

    The channels of the convolution are the queries of all key heads, then the keys of all key
    heads, then the values of all value heads.

    Attributes:
        key_heads: The number of heads of queries and keys, K.
        value_heads: The number of heads of values, N, a multiple of K. Each has a memory.
        key_width: The width of queries and keys, H.
        value_width: The width of values, W.
        grouped: Whether value head n uses key head n // (N / K). If not, it uses n % K.
    """

    key_heads: int
    value_heads: int
    key_width: int
    value_width: int
    grouped: bool

    @property
    def shared(self) -> int:
        """The number of value heads per key head, N / K."""
        return self.value_heads // self.key_heads

    @property
    def channels(self) -> int:
        """The number of channels of the convolution, C."""
        return 2 * self.first_key + self.value_heads * self.value_width

    @property
    def first_key(self) -> int:
        """The first channel of the keys, which is also the number of channels of queries."""
        return self.key_heads * self.key_width

    def key_head(self, n):
        """Returns the key head of value head n."""
        return n // self.shared if self.grouped else n % self.key_heads

    def value_head(self, k, i: int):
        """Returns the value head with index i among the value heads of key head k."""
        return k * self.shared + i if self.grouped else i * self.key_heads + k


class Token(NamedTuple):
    """The outputs of the projections for one token of each sequence, in any float dtypes.

    Attributes:
        qkv_BC: The inputs of the convolution.
        gate_BNW: The gates, before silu.
        beta_BN: The shares by which memories move to new values, before sigmoid.
        alpha_BN: The rates of decay, before adding `dt`, softplus, and the product with `a`.
    """

    qkv_BC: jax.Array
    gate_BNW: jax.Array
    beta_BN: jax.Array
    alpha_BN: jax.Array


class Parameters(NamedTuple):
    """The parameters of a layer, in any float dtypes.

    Attributes:
        filters_LC: The filters of the convolution; the last tap applies to the token itself.
        dt_N: Numbers that are added to the rates of decay.
        a_N: Factors of the rates; negative for a decay.
        scale_W: The scale of the norm of each head's output.
    """

    filters_LC: jax.Array
    dt_N: jax.Array
    a_N: jax.Array
    scale_W: jax.Array


class Tokens(NamedTuple):
    """The operands of the delta rule for T tokens of each sequence, float32.

    Attributes:
        q_BTNH: The queries, scaled.
        k_BTNH: The keys, of length 1.
        v_BTNW: The values.
        log_decay_BTN: The logarithms of the decays of memories, at most 0.
        beta_BTN: The shares by which memories move to new values.
    """

    q_BTNH: jax.Array
    k_BTNH: jax.Array
    v_BTNW: jax.Array
    log_decay_BTN: jax.Array
    beta_BTN: jax.Array
