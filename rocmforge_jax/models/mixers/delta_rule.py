"""The gated delta net of Qwen3-Next and Qwen3.5 as a mixer."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from rocmforge_jax.models.make import Make, check_sizes
from rocmforge_jax.models.parts import Tokens
from rocmforge_jax.nn import (
    Bias,
    CausalConvolution,
    MemoryState,
    delta_rule,
    l2_norm,
    products,
)
from rocmforge_jax.nn.fresh import filled


@dataclasses.dataclass(frozen=True)
class DeltaRule:
    """The gated delta rule over queries, keys and values that went through a short convolution.

    Decay and share of a token come from ssm_alpha, ssm_dt and ssm_a, and from ssm_beta. The output
    of each head is normed and gated by silu of attn_gate.

    Attributes:
        key_heads: Heads of queries and keys, K.
        value_heads: Heads of values, N, a multiple of K. Each has a memory.
        key_width: Of queries and keys, H.
        value_width: Of values, W.
        taps: Tokens that the convolution sees.
        grouped: Whether value heads that share a key head are neighbours, so that value head n
            takes key head n // (N / K). If not, it takes key head n % K.
        fused_input: Whether queries, keys, values and gates are one tensor, ssm_in, key head by key
            head, and not in attn_qkv and attn_gate.
        fused_shares: Whether ssm_ba holds ssm_beta and ssm_alpha, key head by key head.
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
    def _values(self) -> int:
        """Values of all heads, and as many gates."""
        return self.value_heads * self.value_width

    @property
    def _channels(self) -> int:
        """Queries, keys and values of all heads, which the convolution sees."""
        return 2 * self.key_heads * self.key_width + self._values

    def _projections(self) -> dict[str, int]:
        """The tensors that read the residual stream, and their widths."""
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
        # Files have no suffix after this name, so it is no module's.
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
        """Computes the input of the output projection [B, T, N * W], and the state."""
        qkv_BTC, gate_BTNW, beta_BTN, alpha_BTN = self._project(layer, x_BTD, norm)
        given = state
        if state is None:
            state = self.init_state(x_BTD.shape[0], 0, x_BTD.dtype)
        qkv_BTC, conv = layer.ssm_conv1d(qkv_BTC, state.conv, tokens.lengths_B)
        q_BTNH, k_BTNH, v_BTNW = self._heads(jax.nn.silu(qkv_BTC), layer.config.norms.epsilon)
        dt_N, a_N = layer.ssm_dt.bias.get_value(), layer.ssm_a.get_value()
        rates_BTN = jax.nn.softplus(alpha_BTN + _along_heads(dt_N))
        out_BTNW, memory = delta_rule(
            q_BTNH,
            k_BTNH,
            v_BTNW,
            rates_BTN * _along_heads(a_N),
            jax.nn.sigmoid(beta_BTN),
            state.memory_BNHW,
            tokens.lengths_B,
            backend=layer.numerics.backend,
        )
        gated_BTNW = layer.ssm_norm(out_BTNW) * jax.nn.silu(gate_BTNW)
        out = gated_BTNW.reshape(*x_BTD.shape[:2], -1).astype(x_BTD.dtype)
        return out, None if given is None else MemoryState(memory, conv)

    def _project(self, layer, x_BTD, norm):
        """Computes qkv [B, T, C] for the convolution; in float32 gates, beta and alpha by heads."""
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
        gate = gate.reshape(*gate.shape[:2], self.value_heads, self.value_width)
        return qkv, *(part.astype(jnp.float32) for part in (gate, beta, alpha))

    def _split_input(self, fused):
        """Splits ssm_in, where each key head's query, key, values and gates follow one another."""
        H, values = self.key_width, self._values // self.key_heads
        of_heads = _of_key_heads(fused, self.key_heads)
        *qkv, gate = jnp.split(of_heads, [H, 2 * H, 2 * H + values], axis=-1)
        return jnp.concatenate([_flat(part) for part in qkv], axis=-1), _flat(gate)

    def _heads(self, qkv_BTC, epsilon: float):
        """Splits q, k and v into heads, and gives each value head its query and its key."""
        keys = self.key_heads * self.key_width
        q, k, v = jnp.split(qkv_BTC, [keys, 2 * keys], axis=-1)
        q, k = (l2_norm(_of_key_heads(part, self.key_heads), epsilon) for part in (q, k))
        shared = self.value_heads // self.key_heads
        if self.grouped:
            q, k = (jnp.repeat(part, shared, axis=2) for part in (q, k))
        else:
            q, k = (jnp.tile(part, (1, 1, shared, 1)) for part in (q, k))
        v_BTNW = v.reshape(*v.shape[:2], self.value_heads, self.value_width)
        return q * jnp.float32(self.key_width**-0.5), k, v_BTNW

    def workspace(self, tokens: int, slots: int) -> int:
        """Counts what the convolution reads and gives, and operands and outputs of the rule."""
        of_rule = self.value_heads * (2 * self.key_width + 2 * self.value_width)
        return tokens * (2 * self._channels + 2 * of_rule)


def _of_key_heads(x_BTC, heads: int):
    return x_BTC.reshape(*x_BTC.shape[:2], heads, -1)


def _flat(x):
    return x.reshape(*x.shape[:2], -1)


def _along_heads(vector_N):
    return vector_N.astype(jnp.float32)[None, None]
