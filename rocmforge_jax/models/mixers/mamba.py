"""The state space of Mamba as a mixer."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from rocmforge_jax.models.make import Make, check_sizes
from rocmforge_jax.models.parts import Tokens
from rocmforge_jax.nn import CausalConvolution, MemoryState, diagonal_scan, products, rms_norm
from rocmforge_jax.nn.fresh import filled


@dataclasses.dataclass(frozen=True)
class Mamba:
    """A selective state space with a short convolution before it.

    ssm_in computes the inputs x and gates z. After the convolution, ssm_x projects x to a low-rank
    time step and to the directions b and c. ssm_dt projects the low-rank time step to one time step
    per channel. The output is multiplied by silu(z).

    Attributes:
        inner: The number of channels, N.
        state_width: The width of a channel's memory and of b and c, W.
        time_rank: The width of the low-rank time step.
        taps: The taps of the convolution.
        norm: The norm of the low-rank time step, b and c: "learned" with learned weights
            (ssm_dt_norm, ssm_b_norm, ssm_c_norm), "unit" without, or None for no norm.
    """

    inner: int
    state_width: int
    time_rank: int
    taps: int
    norm: Literal["learned", "unit"] | None = None
    output = "ssm_out"
    rope = None
    source = None

    def __post_init__(self):
        sizes = ("inner", "state_width", "time_rank", "taps")
        check_sizes(**{name: getattr(self, name) for name in sizes})
        if self.norm not in ("learned", "unit", None):
            raise ValueError(f"norm must be learned, unit or None, got {self.norm!r}")

    @property
    def _parts(self) -> dict[str, int]:
        """The outputs of ssm_x: names of their norms -> widths."""
        W = self.state_width
        return {"ssm_dt_norm": self.time_rank, "ssm_b_norm": W, "ssm_c_norm": W}

    def modules(self, make: Make) -> Mapping[str, nnx.Module | nnx.Param]:
        """Makes the projections, the filters, the parameters of the channels and the norms."""
        N, biased = self.inner, "ssm_conv1d" in make.biases
        made: dict[str, nnx.Module | nnx.Param] = {
            "ssm_in": make.linear("ssm_in", make.width, 2 * N),
            "ssm_conv1d": CausalConvolution(self.taps, N, use_bias=biased, rngs=make.rngs),
            "ssm_x": make.linear("ssm_x", N, sum(self._parts.values())),
            "ssm_dt": make.linear("ssm_dt", self.time_rank, N),
            # Their names in files have no suffix, so they are parameters, not modules.
            "ssm_a": nnx.Param(filled((N, self.state_width), -1, jnp.float32)),
            "ssm_d": nnx.Param(filled((N,), 1, jnp.float32)),
            "ssm_out": make.linear("ssm_out", N, make.width),
        }
        if self.norm == "learned":
            made |= {name: make.norm(name, width) for name, width in self._parts.items()}
        return made

    def init_state(self, batch: int, length: int, dtype) -> MemoryState:
        """Makes the state before the first token."""
        memory = self.inner, 1, self.state_width
        return MemoryState.zeros(batch, memory, taps=self.taps, channels=self.inner, dtype=dtype)

    def __call__(self, layer, x_BTD, norm, tokens: Tokens, state: MemoryState | None):
        """Computes the input of the output projection [B, T, N], and the new state."""
        given = state
        if state is None:
            state = self.init_state(x_BTD.shape[0], 0, x_BTD.dtype)
        (fused,) = products(x_BTD, [layer.ssm_in], norm=norm)
        seen, z = jnp.split(fused, 2, axis=-1)
        seen, conv = layer.ssm_conv1d(seen, state.conv, tokens.lengths_B)
        x_BTN = jax.nn.silu(seen)
        dt, b, c = self._selected(layer, x_BTN.astype(x_BTD.dtype))
        (dt_BTN,) = products(dt, [layer.ssm_dt], dtype=jnp.float32)
        out_BTN, memory_BNW = diagonal_scan(
            x_BTN,
            jax.nn.softplus(dt_BTN),
            layer.ssm_a.get_value(),
            b,
            c,
            layer.ssm_d.get_value(),
            state.memory_BNHW[:, :, 0],
            tokens.lengths_B,
        )
        out = (out_BTN * jax.nn.silu(z.astype(jnp.float32))).astype(x_BTD.dtype)
        return out, None if given is None else MemoryState(memory_BNW[:, :, None], conv)

    def _selected(self, layer, x_BTN) -> list[Any]:
        """Computes the low-rank time step, b and c."""
        (found,) = products(x_BTN, [layer.ssm_x])
        ends = [self.time_rank, self.time_rank + self.state_width]
        parts = jnp.split(found, ends, axis=-1)
        if self.norm is None:
            return parts
        if self.norm == "unit":
            return [rms_norm(part, None, layer.config.norms.epsilon) for part in parts]
        return [getattr(layer, name)(part) for name, part in zip(self._parts, parts)]

    def workspace(self, tokens: int, slots: int) -> int:
        """Counts x and z, and inputs and outputs of the convolution and of the state space."""
        return 6 * tokens * self.inner
