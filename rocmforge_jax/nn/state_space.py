"""The part of a Mamba 2 block between its projections.

It is a short convolution, the selective state space, and a gate and a norm of the output. For one
token per sequence, a GPU computes all of it in two kernel launches.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.packing import GROUP
from pallas_kernels.qmatmul.activations import quantize_reference
from pallas_kernels.recurrence.operands import RecurrentState
from pallas_kernels.selective_scan.operands import Parameters, ScanHeads
from rocmforge_jax.backends import Numerics, Operation, choose, differentiable, pallas
from rocmforge_jax.backends.trials import relative_error
from rocmforge_jax.nn.convolution import CausalConvolution, ConvState, causal_convolution
from rocmforge_jax.nn.memory_state import MemoryState
from rocmforge_jax.nn.norm import GroupedRMSNorm, rms_norm
from rocmforge_jax.nn.quantized_input import QuantizedInput
from rocmforge_jax.nn.ssm import selective_scan

#: Largest accepted relative error of a kernel, for any dtype of activations.
_ALLOWED = 5e-3


@dataclasses.dataclass(frozen=True)
class StateSpaceSpec:
    """The settings of a state space. Hashable.

    Attributes:
        heads: How channels are divided into heads and groups.
        numerics: The backend, and the activation mode of the next product. A kernel may quantise
            its result in this mode.
    """

    heads: ScanHeads
    numerics: Numerics = Numerics()


def state_space(
    spec: StateSpaceSpec,
    projected_BTF,
    conv,
    dt_N,
    a_N,
    d_N,
    norm,
    state: MemoryState,
    lengths_B=None,
) -> tuple[QuantizedInput, MemoryState]:
    """Applies the state space of Mamba 2, with its convolution, gate and norm, to T tokens.

    Args:
        spec: The settings.
        projected_BTF: The outputs of the projection, in the order of `ScanHeads`: gates, channels
            of the convolution, time steps.
        conv: The `CausalConvolution`.
        dt_N: Added to the time steps before softplus.
        a_N: The rates of the memories, below 0 for a decay.
        d_N: The factors of the heads' inputs in their outputs.
        norm: The norm of each group's gated outputs, or None.
        state: The state after the earlier tokens. Donate it under `jax.jit`: a step updates it in
            place.
        lengths_B: int32, the number of real tokens of each sequence, default T.

    Returns:
        The output [B, T, N * H] in the dtype of `projected_BTF`, and the new state.
    """
    shaped = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (projected_BTF, state))
    choice = choose(STATE_SPACE, (*shaped, conv, norm, spec), spec.numerics.backend)
    if choice.name == "xla":
        parameters = dt_N, a_N, d_N
        out, state = _plain(spec, projected_BTF, conv, parameters, norm, state, lengths_B)
        return QuantizedInput(out), state
    bias = None if conv.bias is None else conv.bias.get_value()
    scale = None if norm is None else norm.scale.get_value().reshape(-1)
    parameters = Parameters(conv.kernel.get_value(), bias, dt_N, a_N, d_N, scale)
    few = len(projected_BTF) <= pallas.gemv_rows(projected_BTF.dtype)
    quantizes = few and spec.heads.group_width % GROUP == 0
    step = _Step(spec, 0.0 if norm is None else norm.epsilon, quantizes)
    (out, quantized), state = differentiable(step, projected_BTF, parameters, state, lengths_B)
    return QuantizedInput(out, quantized), state


def _check_pallas(projected, state, conv, norm, spec: StateSpaceSpec) -> str:
    on, heads = pallas.target(), spec.heads
    if (tokens := projected.shape[1]) != 1:
        raise NotImplementedError(f"{tokens} tokens, the fused kernels take one")
    if type(conv) is not CausalConvolution:
        raise NotImplementedError(f"the convolution is a {type(conv).__name__}")
    if norm is not None and type(norm) is not GroupedRMSNorm:
        raise NotImplementedError(f"the norm is a {type(norm).__name__}")
    pallas.check_scan_step(heads, projected.shape[0])
    options = (" with a bias" if conv.bias is not None else "") + (", a norm" if norm else "")
    of_heads = f"{heads.shared} heads of {heads.head_width} x {heads.state_width} a group"
    what = f"the step of a state space of {of_heads}{options}, {projected.dtype}"
    small = dataclasses.replace(heads, groups=2, heads=2 * heads.shared)
    has = conv.bias is not None, norm is not None
    inputs = state.conv.inputs.shape[1]
    error = functools.partial(_trial_error, small, projected.dtype, inputs, *has)
    pallas.require(what, error, _ALLOWED)
    return f"convolution, state space, gate and norm in two launches, {on}"


#: Fused: where Pallas does not support it, its parts are computed one by one.
STATE_SPACE = Operation("Mamba 2", {"pallas": _check_pallas}, fused=True)


def _plain(spec: StateSpaceSpec, projected_BTF, conv, parameters, norm, state, lengths_B):
    """Computes the parts of `state_space` one by one; conv and norm may be plain functions.

    parameters: dt_N, a_N and d_N.
    """
    heads, (dt_N, a_N, d_N) = spec.heads, parameters
    ends = [heads.inner, heads.inner + heads.channels]
    z, seen, dt = jnp.split(projected_BTF, ends, axis=-1)
    seen, conv_state = conv(seen, state.conv, lengths_B)
    x, b, c = _split(jax.nn.silu(seen), heads)
    out, memory = selective_scan(
        x,
        jax.nn.softplus(dt.astype(jnp.float32) + dt_N.astype(jnp.float32)[None, None]),
        a_N,
        b,
        c,
        d_N,
        state.memory_BNHW,
        lengths_B,
        exact=projected_BTF.dtype == jnp.float32,
        backend=spec.numerics.backend,
    )
    out = out.reshape(z.shape) * jax.nn.silu(z.astype(jnp.float32))
    out = out if norm is None else norm(out)
    return out.astype(projected_BTF.dtype), MemoryState(memory, conv_state)


def _split(seen_BTC, heads: ScanHeads):
    """Splits the outputs of the convolution into x (by heads) and b and c (by groups)."""
    directions = heads.groups * heads.state_width
    parts = jnp.split(seen_BTC, [heads.inner, heads.inner + directions], axis=-1)
    counts = heads.heads, heads.groups, heads.groups
    return [part.reshape(*part.shape[:2], n, -1) for part, n in zip(parts, counts)]


@dataclasses.dataclass(frozen=True)
class _Step:
    """A step of one token per sequence: in Pallas, and in plain XLA for gradients.

    Attributes:
        spec: The settings.
        epsilon: Epsilon of the norm; unused without a norm.
        quantizes: Whether the kernel also returns Activations for the next product.
    """

    spec: StateSpaceSpec
    epsilon: float
    quantizes: bool

    def __call__(self, projected_BTF, parameters: Parameters, state: MemoryState, lengths_B):
        """Returns ((output [B, 1, N * H], its Activations or None), state)."""
        arrays = RecurrentState(state.memory_BNHW, state.conv.inputs)
        operands = projected_BTF[:, 0], parameters, arrays, lengths_B
        out, arrays, quantized = pallas.scan_step(
            *operands, self.spec.heads, self.epsilon, self._mode
        )
        state = MemoryState(arrays.memory_BNHW, ConvState(arrays.inputs_BLC))
        return (out[:, None], quantized), state

    def _normed(self, scale, out):
        by_group = out.reshape(*out.shape[:-1], self.spec.heads.groups, -1)
        scales = scale.reshape(by_group.shape[-2:])
        return rms_norm(by_group, scales, self.epsilon).reshape(out.shape)

    @property
    def _mode(self) -> str | None:
        return self.spec.numerics.activations if self.quantizes else None

    def plain(self, projected_BTF, parameters: Parameters, state: MemoryState, lengths_B) -> Any:
        """Computes the same in plain XLA."""
        filters, bias, *of_heads, scale = parameters

        def conv(x, before, lengths):
            y, after = causal_convolution(x, filters, before, lengths)
            return y if bias is None else y + bias.astype(jnp.float32)[None, None], after

        norm = None if scale is None else functools.partial(self._normed, scale)
        out, state = _plain(self.spec, projected_BTF, conv, of_heads, norm, state, lengths_B)
        quantized = quantize_reference(out[:, 0], self._mode) if self._mode else None
        return (out, quantized), state


def _trial_error(heads: ScanHeads, dtype, inputs: int, has_bias: bool, has_norm: bool) -> jax.Array:
    """Returns the largest relative error of a step's results on small random operands.

    Args:
        heads: The heads.
        dtype: Dtype of the projection.
        inputs: Number of inputs in the convolution's state, L - 1.
        has_bias: Whether the convolution has a bias.
        has_norm: Whether the outputs are normalised.
    """
    B, N, C = 2, heads.heads, heads.channels
    memory = B, N, heads.head_width, heads.state_width
    shapes = [(inputs + 1, C), (C,), (N,), (N,), (N,), (heads.inner,), memory]
    filters, bias, dt, rates, d, scale, memory = (
        jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)
    )
    projected, held = (
        jax.random.normal(jax.random.key(10 + i), (B, *shape), dtype)
        for i, shape in enumerate([(1, heads.projected), (inputs, C)])
    )
    optional = bias if has_bias else None, scale if has_norm else None
    parameters = Parameters(filters, optional[0], dt, -jnp.exp(rates), d, optional[1])
    step = _Step(StateSpaceSpec(heads), 1e-6, quantizes=False)
    operands = projected, parameters, MemoryState(memory, ConvState(held)), None
    return relative_error(step(*operands), step.plain(*operands))
