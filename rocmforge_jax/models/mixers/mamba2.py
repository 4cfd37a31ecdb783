"""The state space of Mamba 2 as a mixer."""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from flax import nnx

from rocmforge_jax.models.make import Make, check_sizes
from rocmforge_jax.models.parts import Tokens
from rocmforge_jax.nn import (
    Bias,
    CausalConvolution,
    GroupedRMSNorm,
    MemoryState,
    ScanHeads,
    StateSpaceSpec,
    products,
    state_space,
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
    def _heads(self) -> ScanHeads:
        """The heads, as an argument of `state_space`."""
        return ScanHeads(self.heads, self.groups, self.head_width, self.state_width)

    def modules(self, make: Make) -> Mapping[str, nnx.Module | nnx.Param]:
        """Makes the projections, the filters, the parameters of the heads and the norm."""
        heads, biased = self._heads, "ssm_conv1d" in make.biases
        made: dict[str, nnx.Module | nnx.Param] = {
            "ssm_in": make.linear("ssm_in", make.width, heads.projected),
            "ssm_conv1d": CausalConvolution(
                self.taps, heads.channels, use_bias=biased, rngs=make.rngs
            ),
            "ssm_dt": Bias(self.heads),
            # Their names in files have no suffix, so they are parameters, not modules.
            "ssm_a": nnx.Param(filled((self.heads,), -1, jnp.float32)),
            "ssm_d": nnx.Param(filled((self.heads,), 1, jnp.float32)),
            "ssm_out": make.linear("ssm_out", heads.inner, make.width),
        }
        if self.norm:
            epsilon = make.norms.epsilon
            made["ssm_norm"] = GroupedRMSNorm(self.groups, heads.inner, epsilon=epsilon)
        return made

    def init_state(self, batch: int, length: int, dtype) -> MemoryState:
        """Makes the state before the first token."""
        memory = self.heads, self.head_width, self.state_width
        return MemoryState.zeros(
            batch, memory, taps=self.taps, channels=self._heads.channels, dtype=dtype
        )

    def __call__(self, layer, x_BTD, norm, tokens: Tokens, state: MemoryState | None):
        """Computes the input of the output projection [B, T, N * H], and the new state."""
        given = state
        if state is None:
            state = self.init_state(x_BTD.shape[0], 0, x_BTD.dtype)
        (projected,) = products(x_BTD, [layer.ssm_in], norm=norm)
        out, state = state_space(
            StateSpaceSpec(self._heads, layer.numerics),
            projected,
            layer.ssm_conv1d,
            layer.ssm_dt.bias.get_value(),
            layer.ssm_a.get_value(),
            layer.ssm_d.get_value(),
            layer.ssm_norm if self.norm else None,
            state,
            tokens.lengths_B,
        )
        return out, None if given is None else state

    def workspace(self, tokens: int, slots: int) -> int:
        """Counts ssm_in's outputs, and inputs and outputs of the convolution and state space."""
        return tokens * (3 * self._heads.inner + 3 * self._heads.channels)
