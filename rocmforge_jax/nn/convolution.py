"""Causal depthwise convolutions over the tokens of a sequence: one filter per channel."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from rocmforge_jax.nn.fresh import filled, normal
from rocmforge_jax.nn.state import State


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class ConvState(State):
    """The last inputs of a causal convolution, which its next outputs need.

    Attributes:
        inputs: [B, L - 1, D] for a filter of L taps, the latest input last. Zeros stand for the
            inputs before the first token.
    """

    inputs: jax.Array

    @classmethod
    def zeros(cls, batch: int, taps: int, channels: int, dtype) -> "ConvState":
        """Returns the state before the first token."""
        return cls(jnp.zeros((batch, taps - 1, channels), dtype))


def causal_convolution(
    x_BTD, kernel_LD, state: ConvState | None = None, lengths_B=None
) -> tuple[jax.Array, ConvState | None]:
    """Convolves each channel with its filter: y[t] = sum of kernel[l] * x[t - L + 1 + l].

    Args:
        x_BTD: The inputs.
        kernel_LD: The filters; the last tap belongs to the token itself.
        state: The state after the earlier tokens. None: there are no earlier tokens, and no state
            is returned.
        lengths_B: int32, the number of real tokens of each sequence, default T. Padding never
            enters the state.

    Returns:
        y, float32 [B, T, D], and the new state, or None.

    Raises:
        ValueError: Shapes do not fit.
    """
    (B, T, D), L = x_BTD.shape, kernel_LD.shape[0]
    if kernel_LD.shape[1:] != (D,):
        raise ValueError(f"x has {D} channels, the kernel is {list(kernel_LD.shape)}")
    before = ConvState.zeros(B, L, D, x_BTD.dtype) if state is None else state
    if before.inputs.shape != (B, L - 1, D):
        raise ValueError(
            f"the state holds {list(before.inputs.shape)}, a filter of {L} taps over {D} channels"
            f" needs {[B, L - 1, D]}"
        )
    dtype = jnp.promote_types(before.inputs.dtype, x_BTD.dtype)
    whole_BSD = jnp.concatenate([before.inputs.astype(dtype), x_BTD.astype(dtype)], axis=1)
    kernel_LD = kernel_LD.astype(jnp.float32)
    parts = (
        whole_BSD[:, i : i + T].astype(jnp.float32) * kernel_LD[None, None, i] for i in range(L)
    )
    y_BTD = sum(parts, start=jnp.zeros((), jnp.float32))
    if state is None:
        return y_BTD, None
    return y_BTD, ConvState(_last(whole_BSD, L - 1, T, lengths_B).astype(before.inputs.dtype))


def _last(whole_BSD, count: int, T: int, lengths_B):
    """Returns the last `count` inputs up to the last real token, [B, count, D]."""
    if lengths_B is None:
        return whole_BSD[:, T:]
    index_BC = lengths_B.astype(jnp.int32)[:, None] + jnp.arange(count, dtype=jnp.int32)[None]
    return jnp.take_along_axis(whole_BSD, index_BC[..., None], axis=1)


class CausalConvolution(nnx.Module):
    """`causal_convolution` with learned filters.

    Attributes:
        kernel: (L, D).
        bias: (D,), added to the outputs, or None.
    """

    def __init__(
        self,
        taps: int,
        channels: int,
        *,
        use_bias: bool = False,
        dtype=jnp.float32,
        rngs: nnx.Rngs | None,
    ):
        self.kernel = nnx.Param(normal(rngs, (taps, channels), taps**-0.5, dtype))
        self.bias = nnx.Param(filled((channels,), 0, dtype)) if use_bias else None

    def __call__(self, x_BTD, state: ConvState | None = None, lengths_B=None):
        """Convolves x: see `causal_convolution`."""
        y_BTD, state = causal_convolution(x_BTD, self.kernel.get_value(), state, lengths_B)
        if self.bias is not None:
            y_BTD = y_BTD + self.bias.get_value().astype(jnp.float32)[None, None]
        return y_BTD, state
