"""The part of a gated delta net between its projections.

It is a short convolution, the gated delta rule, and a norm and a gate of the output. For one token
per sequence, a GPU computes all of it in two kernel launches.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.delta_rule.operands import DeltaHeads, Parameters, Token
from pallas_kernels.packing import GROUP
from pallas_kernels.qmatmul.activations import quantize_reference
from pallas_kernels.recurrence.operands import RecurrentState
from rocmforge_jax.backends import Numerics, Operation, choose, differentiable, pallas
from rocmforge_jax.backends.trials import relative_error
from rocmforge_jax.nn.convolution import CausalConvolution, ConvState, causal_convolution
from rocmforge_jax.nn.delta_rule import delta_rule
from rocmforge_jax.nn.memory_state import MemoryState
from rocmforge_jax.nn.norm import l2_norm, require_fusable, rms_norm
from rocmforge_jax.nn.quantized_input import QuantizedInput

#: Largest accepted relative error of a kernel, for any dtype of activations.
_ALLOWED = 5e-3


@dataclasses.dataclass(frozen=True)
class DeltaNetSpec:
    """The settings of a gated delta net. Hashable.

    Attributes:
        heads: How channels are divided into heads.
        epsilon: Epsilon of the L2 norms of queries and keys.
        numerics: The backend, and the activation mode of the next product. A kernel may quantise
            its result in this mode.
    """

    heads: DeltaHeads
    epsilon: float
    numerics: Numerics = Numerics()


def delta_net(
    spec: DeltaNetSpec, projected, conv, dt_N, a_N, norm, state: MemoryState, lengths_B=None
) -> tuple[QuantizedInput, MemoryState]:
    """Applies a gated delta net to T tokens.

    Args:
        spec: The settings.
        projected: The outputs of the projections: queries, keys and values [B, T, C], in the order
            of `DeltaHeads`; gates [B, T, N * W]; update shares (beta) and decay rates (alpha),
            both [B, T, N].
        conv: The `CausalConvolution`.
        dt_N: Added to the decay rates before softplus.
        a_N: Factors of the decay rates after softplus.
        norm: The norm of the output of each head.
        state: The state after the earlier tokens. Donate it under `jax.jit`: a step updates it in
            place.
        lengths_B: int32, the number of real tokens of each sequence, default T.

    Returns:
        The output [B, T, N * W] in the dtype of the channels, and the new state.
    """
    shaped = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (projected, state))
    choice = choose(DELTA_NET, (*shaped, conv, norm, spec), spec.numerics.backend)
    if choice.name == "xla":
        out, state = _plain(spec, projected, conv, dt_N, a_N, norm, state, lengths_B)
        return QuantizedInput(out), state
    filters, scale = conv.kernel.get_value(), norm.scale.get_value()
    parameters = Parameters(filters, dt_N, a_N, scale)
    (qkv_BTC, *_), W = projected, spec.heads.value_width
    quantizes = len(qkv_BTC) <= pallas.gemv_rows(qkv_BTC.dtype) and W % GROUP == 0
    step = _Step(spec, norm.epsilon, quantizes)
    (out, quantized), state = differentiable(step, projected, parameters, state, lengths_B)
    return QuantizedInput(out, quantized), state


def _check_pallas(projected, state, conv, norm, spec: DeltaNetSpec) -> str:
    on = pallas.target()
    (qkv, *_), heads = projected, spec.heads
    if (tokens := qkv.shape[1]) != 1:
        raise NotImplementedError(f"{tokens} tokens, the fused kernel takes one")
    if type(conv) is not CausalConvolution or conv.bias is not None:
        bias = " with a bias" if type(conv) is CausalConvolution else ""
        raise NotImplementedError(f"the convolution is a {type(conv).__name__}{bias}")
    require_fusable(norm)
    launches = pallas.check_delta_step(heads, qkv.shape[0])
    of_heads = f"{heads.shared} value heads of {heads.value_width} a key head of {heads.key_width}"
    what = f"the step of a delta net of {of_heads}, {qkv.dtype}"
    small = dataclasses.replace(heads, key_heads=2, value_heads=2 * heads.shared)
    error = functools.partial(_trial_error, small, qkv.dtype, state.conv.inputs.shape[1])
    pallas.require(what, error, _ALLOWED)
    does = "convolution, gated delta rule, norm and gate"
    return f"{does} in {launches}, {on}"


#: Fused: where Pallas does not support it, its parts are computed one by one.
DELTA_NET = Operation("delta net", {"pallas": _check_pallas}, fused=True)


def _plain(spec, projected, conv, dt_N, a_N, norm, state, lengths_B):
    """Computes the parts of `delta_net` one by one; conv and norm may be plain functions."""
    qkv_BTC, *others = projected
    gate, beta_BTN, alpha_BTN = (part.astype(jnp.float32) for part in others)
    heads = spec.heads
    seen_BTC, conv_state = conv(qkv_BTC, state.conv, lengths_B)
    q_BTNH, k_BTNH, v_BTNW = _split(jax.nn.silu(seen_BTC), heads, spec.epsilon)
    rates_BTN = jax.nn.softplus(alpha_BTN + _along_heads(dt_N))
    out_BTNW, memory = delta_rule(
        q_BTNH,
        k_BTNH,
        v_BTNW,
        rates_BTN * _along_heads(a_N),
        jax.nn.sigmoid(beta_BTN),
        state.memory_BNHW,
        lengths_B,
        exact=qkv_BTC.dtype == jnp.float32,
        backend=spec.numerics.backend,
    )
    gated_BTNW = norm(out_BTNW) * jax.nn.silu(gate.reshape(out_BTNW.shape))
    out = gated_BTNW.reshape(*qkv_BTC.shape[:2], -1).astype(qkv_BTC.dtype)
    return out, MemoryState(memory, conv_state)


def _split(qkv_BTC, heads: DeltaHeads, epsilon: float):
    """Splits q, k and v into heads, and repeats queries and keys for each value head."""
    q, k, v = jnp.split(qkv_BTC, [heads.first_key, 2 * heads.first_key], axis=-1)

    def by_heads(x_BTC, count: int):
        return x_BTC.reshape(*x_BTC.shape[:2], count, -1)

    q, k = (l2_norm(by_heads(part, heads.key_heads), epsilon) for part in (q, k))
    if heads.grouped:
        q, k = (jnp.repeat(part, heads.shared, axis=2) for part in (q, k))
    else:
        q, k = (jnp.tile(part, (1, 1, heads.shared, 1)) for part in (q, k))
    return q * jnp.float32(heads.key_width**-0.5), k, by_heads(v, heads.value_heads)


def _along_heads(vector_N):
    return vector_N.astype(jnp.float32)[None, None]


@dataclasses.dataclass(frozen=True)
class _Step:
    """A delta net's step of one token per sequence: in Pallas, and in plain XLA for gradients.

    Attributes:
        spec: The settings.
        norm_epsilon: Epsilon of the norm of the outputs.
        quantizes: Whether the kernel also returns Activations for the next product.
    """

    spec: DeltaNetSpec
    norm_epsilon: float
    quantizes: bool

    def __call__(self, projected, parameters: Parameters, state: MemoryState, lengths_B):
        """Returns ((output [B, 1, N * W], its Activations or None), state)."""
        heads = self.spec.heads
        qkv_BC, gate, beta_BN, alpha_BN = (part[:, 0] for part in projected)
        gate_BNW = gate.reshape(len(gate), heads.value_heads, -1)
        out, arrays, quantized = pallas.delta_step(
            Token(qkv_BC, gate_BNW, beta_BN, alpha_BN),
            parameters,
            RecurrentState(state.memory_BNHW, state.conv.inputs),
            lengths_B,
            heads,
            (self.spec.epsilon, self.norm_epsilon),
            self._mode,
        )
        state = MemoryState(arrays.memory_BNHW, ConvState(arrays.inputs_BLC))
        return (out.reshape(len(out), 1, -1), quantized), state

    @property
    def _mode(self) -> str | None:
        return self.spec.numerics.activations if self.quantizes else None

    def plain(self, projected, parameters: Parameters, state: MemoryState, lengths_B) -> Any:
        """Computes the same in plain XLA."""
        filters, dt_N, a_N, scale = parameters
        out, state = _plain(
            self.spec,
            projected,
            lambda x, conv, lengths: causal_convolution(x, filters, conv, lengths),
            dt_N,
            a_N,
            lambda out: rms_norm(out, scale, self.norm_epsilon),
            state,
            lengths_B,
        )
        quantized = quantize_reference(out[:, 0], self._mode) if self._mode else None
        return (out, quantized), state


def _trial_error(heads: DeltaHeads, dtype, inputs: int) -> jax.Array:
    """Returns the largest relative error of a step's results on small random operands.

    Args:
        heads: The heads.
        dtype: Dtype of the projections.
        inputs: Number of inputs in the convolution's state, L - 1.
    """
    B, N, H, W, C = 2, heads.value_heads, heads.key_width, heads.value_width, heads.channels
    shapes = [(B, 1, C), (B, 1, N * W), (B, 1, N), (B, 1, N), (B, inputs, C)]
    random = [jax.random.normal(jax.random.key(i), shape, dtype) for i, shape in enumerate(shapes)]
    filters, memory, dt_N, rates_N, scale_W = (
        jax.random.normal(jax.random.key(10 + i), shape)
        for i, shape in enumerate([(inputs + 1, C), (B, N, H, W), (N,), (N,), (W,)])
    )
    *projected, held = random
    parameters = Parameters(filters, dt_N, -jnp.exp(rates_N), scale_W)
    step = _Step(DeltaNetSpec(heads, 1e-6), 1e-6, quantizes=False)
    operands = tuple(projected), parameters, MemoryState(memory, ConvState(held)), None
    return relative_error(step(*operands), step.plain(*operands))
