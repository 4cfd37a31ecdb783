"""The gated delta net of Qwen3-Next and Qwen3.5 as a mixer."""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from flax import nnx

from rocmforge_jax.models.make import Make, check_sizes
from rocmforge_jax.models.parts import Tokens
from rocmforge_jax.nn import (
    Bias,
    CausalConvolution,
    DeltaHeads,
    DeltaNetSpec,
    MemoryState,
    delta_net,
    products,
)
from rocmforge_jax.nn.fresh import filled


@dataclasses.dataclass(frozen=True)
class DeltaRule:
    """The gated delta rule, with a short convolution of queries, keys and values before it.

    The decay of a token is computed from ssm_alpha, ssm_dt and ssm_a, its update share from
    ssm_beta. The output of each head is normalised and multiplied by silu(attn_gate).

    Attributes:
        key_heads: The number of heads of queries and keys, K.
        value_heads: The number of heads of values, N, a multiple of K. Each has a memory.
        key_width: The width of a query or key, H.
        value_width: The width of a value, W.
        taps: The taps of the convolution.
        grouped: Whether value heads with the same key head are adjacent. If true, value head n
            uses key head n // (N / K), otherwise key head n % K.
        fused_input: Whether ssm_in replaces attn_qkv and attn_gate. It contains queries, keys,
            values and gates, grouped by key head.
        fused_shares: Whether ssm_ba replaces ssm_beta and ssm_alpha, grouped by key head.
    """

    key_heads: int
    value_heads: int
    key_width: int
    value_width: int
    taps: int
    grouped: bool = False
    fused_input: bool = False
    fused_shares: bool = False
    output = "ssm_out"
    rope = None
    source = None

    def __post_init__(self):
        sizes = ("key_heads", "value_heads", "key_width", "value_width", "taps")
        check_sizes(**{name: getattr(self, name) for name in sizes})
        if self.value_heads % self.key_heads:
            raise ValueError(
                f"the delta rule has {self.value_heads} value heads and {self.key_heads} key heads:"
                " value heads must be a multiple of key heads"
            )
        if (self.fused_input or self.fused_shares) and not self.grouped:
            raise ValueError("ssm_in and ssm_ba hold one key head after the other: set grouped")

    @property
    def _heads(self) -> DeltaHeads:
        """The heads, as an argument of `delta_net`."""
        sizes = self.key_heads, self.value_heads, self.key_width, self.value_width
        return DeltaHeads(*sizes, self.grouped)

    @property
    def _values(self) -> int:
        """The total width of the values, which is also the total width of the gates."""
        return self.value_heads * self.value_width

    @property
    def _channels(self) -> int:
        """The total width of queries, keys and values: the channels of the convolution."""
        return self._heads.channels

    def _projections(self) -> dict[str, int]:
        """The names of the projections of the residual stream, and their output widths."""
        sizes = {"attn_qkv": self._channels, "attn_gate": self._values}
        if self.fused_input:
            sizes = {"ssm_in": self._channels + self._values}
        if self.fused_shares:
            return sizes | {"ssm_ba": 2 * self.value_heads}
        return sizes | {"ssm_beta": self.value_heads, "ssm_alpha": self.value_heads}

    def modules(self, make: Make) -> Mapping[str, nnx.Module | nnx.Param]:
        """Makes the projections, the filters, the decay and the norm of outputs."""
        made: dict[str, nnx.Module | nnx.Param] = {
            name: make.linear(name, make.width, size) for name, size in self._projections().items()
        }
        made["ssm_conv1d"] = CausalConvolution(self.taps, self._channels, rngs=make.rngs)
        made["ssm_dt"] = Bias(self.value_heads)
        # Its name in files has no suffix, so it is a parameter of the layer, not a module.
        made["ssm_a"] = nnx.Param(filled((self.value_heads,), -1, jnp.float32))
        made["ssm_norm"] = make.norm("ssm_norm", self.value_width)
        made["ssm_out"] = make.linear("ssm_out", self._values, make.width)
        return made

    def init_state(self, batch: int, length: int, dtype) -> MemoryState:
        """Makes the state before the first token."""
        memory = self.value_heads, self.key_width, self.value_width
        return MemoryState.zeros(
            batch, memory, taps=self.taps, channels=self._channels, dtype=dtype
        )

    def __call__(self, layer, x_BTD, norm, tokens: Tokens, state: MemoryState | None):
        """Computes the input of the output projection [B, T, N * W], and the new state."""
        given = state
        if state is None:
            state = self.init_state(x_BTD.shape[0], 0, x_BTD.dtype)
        out, state = delta_net(
            DeltaNetSpec(self._heads, layer.config.norms.epsilon, layer.numerics),
            self._project(layer, x_BTD, norm),
            layer.ssm_conv1d,
            layer.ssm_dt.bias.get_value(),
            layer.ssm_a.get_value(),
            layer.ssm_norm,
            state,
            tokens.lengths_B,
        )
        return out, None if given is None else state

    def _project(self, layer, x_BTD, norm):
        """Computes qkv [B, T, C] for the convolution, gates [B, T, N * W], beta and alpha."""
        names = list(self._projections())
        linears = [getattr(layer, name) for name in names]
        found = dict(zip(names, products(x_BTD, linears, norm=norm)))
        if self.fused_input:
            qkv, gate = self._split_input(found["ssm_in"])
        else:
            qkv, gate = found["attn_qkv"], found["attn_gate"]
        if self.fused_shares:
            shares = _of_key_heads(found["ssm_ba"], self.key_heads)
            beta, alpha = (_flat(part) for part in jnp.split(shares, 2, axis=-1))
        else:
            beta, alpha = found["ssm_beta"], found["ssm_alpha"]
        return qkv, gate, beta, alpha

    def _split_input(self, fused):
        """Splits ssm_in, which contains query, key, values and gates of each key head in a row."""
        H, values = self.key_width, self._values // self.key_heads
        of_heads = _of_key_heads(fused, self.key_heads)
        *qkv, gate = jnp.split(of_heads, [H, 2 * H, 2 * H + values], axis=-1)
        return jnp.concatenate([_flat(part) for part in qkv], axis=-1), _flat(gate)

    def workspace(self, tokens: int, slots: int) -> int:
        """Counts inputs and outputs of the convolution, and operands and outputs of the rule."""
        of_rule = self.value_heads * (2 * self.key_width + 2 * self.value_width)
        return tokens * (2 * self._channels + 2 * of_rule)


def _of_key_heads(x_BTC, heads: int):
    return x_BTC.reshape(*x_BTC.shape[:2], heads, -1)


def _flat(x):
    return x.reshape(*x.shape[:2], -1)
