"""What a gated delta net computes between its projections.

A short convolution, the gated delta rule, and a norm and a gate of its output.
"""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.delta_rule.operands import DeltaHeads
from rocmforge_jax.backends import Numerics
from rocmforge_jax.nn.delta_rule import delta_rule
from rocmforge_jax.nn.memory_state import MemoryState
from rocmforge_jax.nn.norm import l2_norm
from rocmforge_jax.nn.quantized_input import QuantizedInput


@dataclasses.dataclass(frozen=True)
class DeltaNetSpec:
    """How a gated delta net computes. Hashable.

    Attributes:
        heads: How channels are heads.
        epsilon: Of the norms of queries, keys and outputs.
        numerics: The backend, and the mode of activations of the product that follows, for which
            a kernel may quantise the result.
    """

    heads: DeltaHeads
    epsilon: float
    numerics: Numerics = Numerics()


def delta_net(
    spec: DeltaNetSpec, projected, conv, dt_N, a_N, norm, state: MemoryState, lengths_B=None
) -> tuple[QuantizedInput, MemoryState]:
    """Sends T tokens through a gated delta net.

    Args:
        spec: How it computes.
        projected: What the projections give: queries, keys and values [B, T, C], in the order of
            `DeltaHeads`; gates [B, T, N * W]; shares and rates of decay, both [B, T, N].
        conv: The `CausalConvolution`.
        dt_N: Added to the rates, before softplus.
        a_N: Multiply the rates, after it.
        norm: Of the output of each head.
        state: Of the tokens before. Donate it under `jax.jit`: a step writes in place.
        lengths_B: int32, how many of the T tokens are real, None for all.

    Returns:
        The output [B, T, N * W] in the dtype of the channels, and the state.
    """
    out, state = _plain(spec, projected, conv, dt_N, a_N, norm, state, lengths_B)
    return QuantizedInput(out), state


def _plain(spec, projected, conv, dt_N, a_N, norm, state, lengths_B):
    """Computes `delta_net` in plain XLA. conv, norm: functions of arrays, or modules."""
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
    )
    gated_BTNW = norm(out_BTNW) * jax.nn.silu(gate.reshape(out_BTNW.shape))
    out = gated_BTNW.reshape(*qkv_BTC.shape[:2], -1).astype(qkv_BTC.dtype)
    return out, MemoryState(memory, conv_state)


def _split(qkv_BTC, heads: DeltaHeads, epsilon: float):
    """Splits q, k and v into heads, and gives each value head its query and its key."""
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
