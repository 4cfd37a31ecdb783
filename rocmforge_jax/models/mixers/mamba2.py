"""The state space of Mamba 2 as a mixer."""

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
    GroupedRMSNorm,
    MemoryState,
    products,
    selective_scan,
)
from rocmforge_jax.nn.fresh import filled


@dataclasses.dataclass(frozen=True)
class Mamba2:
    """A selective state space with a short convolution of inputs and directions before it.

    ssm_in computes gates z, then x, b and c, and the time step of each head. The convolution is
    applied to x, b and c. The output is multiplied by silu(z) and then normalised.

    Attributes:
        heads: The number of heads, N. Each has a memory.
        head_width: The width of a head's input and output, H.
        state_width: The width of the directions b and c, W.
        groups: The number of groups, K, a divisor of N. The heads of a group share b and c.
        taps: The taps of the convolution.
        norm: Whether the gated outputs of each group are normalised (ssm_norm).
    """

    heads: int
    head_width: int
    state_width: int
    groups: int
    taps: int
    norm: bool = True
    output = "ssm_out"
    rope = None
    source = None

    def __post_init__(self):
        sizes = ("heads", "head_width", "state_width", "groups", "taps")
        check_sizes(**{name: getattr(self, name) for name in sizes})
        if self.heads % self.groups:
            raise ValueError(
                f"the state space has {self.heads} heads and {self.groups} groups: heads must be a"
                " multiple of groups"
            )

    @property
    def _inner(self) -> int:
        """The total width of the inputs of all heads."""
        return self.heads * self.head_width

    @property
    def _channels(self) -> int:
        """The total width of x, b and c: the channels of the convolution."""
        return self._inner + 2 * self.groups * self.state_width

    def modules(self, make: Make) -> Mapping[str, nnx.Module | nnx.Param]:
        """Makes the projections, the filters, the parameters of the heads and the norm."""
        fused, biased = self._inner + self._channels + self.heads, "ssm_conv1d" in make.biases
        made: dict[str, nnx.Module | nnx.Param] = {
            "ssm_in": make.linear("ssm_in", make.width, fused),
            "ssm_conv1d": CausalConvolution(
                self.taps, self._channels, use_bias=biased, rngs=make.rngs
            ),
            "ssm_dt": Bias(self.heads),
            # Their names in files have no suffix, so they are parameters, not modules.
            "ssm_a": nnx.Param(filled((self.heads,), -1, jnp.float32)),
            "ssm_d": nnx.Param(filled((self.heads,), 1, jnp.float32)),
            "ssm_out": make.linear("ssm_out", self._inner, make.width),
        }
        if self.norm:
            epsilon = make.norms.epsilon
            made["ssm_norm"] = GroupedRMSNorm(self.groups, self._inner, epsilon=epsilon)
        return made

    def init_state(self, batch: int, length: int, dtype) -> MemoryState:
        """Makes the state before the first token."""
        memory = self.heads, self.head_width, self.state_width
        return MemoryState.zeros(
            batch, memory, taps=self.taps, channels=self._channels, dtype=dtype
        )

    def __call__(self, layer, x_BTD, norm, tokens: Tokens, state: MemoryState | None):
        """Computes the input of the output projection [B, T, N * H], and the new state."""
        given = state
        if state is None:
            state = self.init_state(x_BTD.shape[0], 0, x_BTD.dtype)
        (fused,) = products(x_BTD, [layer.ssm_in], norm=norm)
        z, seen, dt = jnp.split(fused, [self._inner, self._inner + self._channels], axis=-1)
        seen, conv = layer.ssm_conv1d(seen, state.conv, tokens.lengths_B)
        x, b, c = self._split(jax.nn.silu(seen))
        dt_bias = layer.ssm_dt.bias.get_value().astype(jnp.float32)
        out, memory = selective_scan(
            x,
            jax.nn.softplus(dt.astype(jnp.float32) + dt_bias[None, None]),
            layer.ssm_a.get_value(),
            b,
            c,
            layer.ssm_d.get_value(),
            state.memory_BNHW,
            tokens.lengths_B,
            backend=layer.numerics.backend,
        )
        out = out.reshape(z.shape) * jax.nn.silu(z.astype(jnp.float32))
        out = layer.ssm_norm(out) if self.norm else out
        return out.astype(x_BTD.dtype), None if given is None else MemoryState(memory, conv)

    def _split(self, seen_BTC):
        """Splits the outputs of the convolution into x (by heads) and b and c (by groups)."""
        directions = self.groups * self.state_width
        parts = jnp.split(seen_BTC, [self._inner, self._inner + directions], axis=-1)
        counts = (self.heads, self.groups, self.groups)
        return [part.reshape(*part.shape[:2], n, -1) for part, n in zip(parts, counts)]

    def workspace(self, tokens: int, slots: int) -> int:
        """Counts ssm_in's outputs, and inputs and outputs of the convolution and state space."""
        return tokens * (3 * self._inner + 3 * self._channels)
