"""The gated short convolution of LFM2 as a mixer."""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from flax import nnx

from rocmforge_jax.models.make import Make, check_sizes, check_width
from rocmforge_jax.models.parts import Tokens
from rocmforge_jax.nn import CausalConvolution, ConvState, products


class _ShortConvolution(nnx.Module):
    """The submodules; their names in the file begin with `shortconv`."""

    def __init__(self, make: Make, taps: int):
        width = make.width
        self.in_proj = make.linear("shortconv.in_proj", width, 3 * width)
        self.conv = CausalConvolution(taps, width, rngs=make.rngs)
        self.out_proj = make.linear("shortconv.out_proj", width, width)


@dataclasses.dataclass(frozen=True)
class ShortConvolution:
    """A short convolution, gated at its input and its output.

    in_proj computes b, c and x; the mixer computes c * convolution(b * x).

    Attributes:
        width: The width of the model, which is also the number of channels.
        taps: The number of tokens on which an output depends.
    """

    width: int
    taps: int
    output = "shortconv.out_proj"
    rope = None
    source = None

    def __post_init__(self):
        check_sizes(width=self.width, taps=self.taps)

    def modules(self, make: Make) -> Mapping[str, nnx.Module]:
        """Makes the projections and the filters."""
        check_width(self.width, make.width)
        return {"shortconv": _ShortConvolution(make, self.taps)}

    def init_state(self, batch: int, length: int, dtype) -> ConvState:
        """Makes the state before the first token."""
        return ConvState.zeros(batch, self.taps, self.width, dtype)

    def __call__(self, layer, x_BTD, norm, tokens: Tokens, state: ConvState | None):
        """Computes the input of the output projection [B, T, D], and the new state."""
        (bcx,) = products(x_BTD, [layer.shortconv.in_proj], norm=norm)
        b_BTD, c_BTD, x_BTD = jnp.split(bcx, 3, axis=-1)
        y_BTD, state = layer.shortconv.conv(b_BTD * x_BTD, state, tokens.lengths_B)
        return (c_BTD.astype(jnp.float32) * y_BTD).astype(x_BTD.dtype), state

    def workspace(self, tokens: int, slots: int) -> int:
        """Returns 0, because the temporaries are only a few times the residual stream."""
        return 0
