"""The gated delta net for one token, and its rule for many: checks operands, then runs the kernels.

`rocmforge_jax.nn` computes the cases that the kernels reject with NotImplementedError.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.delta_rule import chunks, kernels
from pallas_kernels.delta_rule.blocks import CHUNK_BLOCKS, Blocks, ChunkBlocks, blocks_of
from pallas_kernels.delta_rule.operands import DeltaHeads, Parameters, Token, Tokens
from pallas_kernels.packing import GROUP
from pallas_kernels.recurrence.operands import (
    RecurrentState,
    require_elements,
    require_float32,
    require_shape,
    require_width,
)
from pallas_kernels.targets import Target, of_family

#: Widths of keys and values that the kernels support.
WIDTHS = (16, 32, 64, 128, 256)
#: Widths of keys and values that the kernels for many tokens support.
CHUNK_WIDTHS = (16, 32, 64, 128)


def step(
    token: Token,
    parameters: Parameters,
    state: RecurrentState,
    heads: DeltaHeads,
    *,
    epsilons: tuple[float, float],
    target: Target,
    lengths_B: jax.Array | None = None,
    activations: str | None = None,
    blocks: Blocks | None = None,
) -> Any:
    """Computes a gated delta net for one token of each sequence.

    Args:
        token: the outputs of the projections.
        parameters: the parameters of the layer.
        state: the state after the previous tokens. It is updated in place if it is donated.
        heads: how channels are divided into heads.
        epsilons: the epsilon of the norms of queries and keys, and of the norm of outputs.
        target: the compilation target.
        lengths_B: integers, 0 for a sequence that has no new token and keeps its state. None: each
            sequence has a new token.
        activations: a mode of `qmatmul.activations`, or None.
        blocks: tile sizes; the default depends on the target.

    Returns:
        The output [B, N, W], in the dtype of `token.qkv_BC`, and the state. With `activations`, a
        triple: output, state, and the Activations of the rows [B, N * W] of the output.

    Raises:
        NotImplementedError: the kernels do not support the operands.
        ValueError: the operands do not fit together.
    """
    check_operands(token, parameters, state, heads, lengths_B)
    require_kernels(heads, state.memory_BNHW.shape[0])
    if activations is not None and heads.value_width % GROUP:
        raise NotImplementedError(
            f"heads of {heads.value_width}, only multiples of {GROUP} can be quantised"
        )
    B, N = token.beta_BN.shape
    blocks = blocks or blocks_of(B * N, target)
    lengths_B = None if lengths_B is None else lengths_B.astype(jnp.int32)
    operands = kernels.Operands(state, token, parameters, lengths_B)
    return kernels.step(operands, heads, epsilons, activations, blocks, target)


def rule(
    tokens: Tokens,
    memory_BNHW: jax.Array,
    *,
    target: Target,
    exact: bool = True,
    blocks: ChunkBlocks | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Applies the gated delta rule to T tokens of each sequence, in three launches.

    A token with a `log_decay` and a `beta` of 0 leaves its memory unchanged.

    Args:
        tokens: float32 arrays.
        memory_BNHW: the memories after the previous tokens, float32. They are updated in place if
            they are donated.
        target: the compilation target.
        exact: whether products keep float32. If not, NVIDIA's matrix units round their operands to
            tensorfloat32, for an error of about 4e-4.
        blocks: tile sizes; the default depends on the target.

    Returns:
        The outputs [B, T, N, W] and the memories, both float32.

    Raises:
        NotImplementedError: the kernels do not support the sizes, or the target.
        ValueError: the operands do not fit together.
    """
    (B, T, N, H), W = tokens.k_BTNH.shape, tokens.v_BTNW.shape[-1]
    blocks = blocks or of_family(CHUNK_BLOCKS, target)
    check_rule((B, T, N, H, W), target, blocks)
    expected = dict(q_BTNH=(B, T, N, H), v_BTNW=(B, T, N, W), log_decay_BTN=(B, T, N))
    expected |= dict(beta_BTN=(B, T, N), memory_BNHW=(B, N, H, W))
    arrays = tokens._asdict() | dict(memory_BNHW=memory_BNHW)
    for name, shape in expected.items():
        require_shape(name, arrays[name], shape)
    for name, array in arrays.items():
        require_float32(name, array)
    return chunks.rule(tokens, memory_BNHW, exact, blocks, target)


def check_rule(sizes: tuple[int, ...], target: Target, blocks: ChunkBlocks | None = None) -> None:
    """Raises NotImplementedError, with the reason, for what `rule` does not support.

    Args:
        sizes: B, T, N, H and W.
        target: the compilation target.
        blocks: tile sizes; the default depends on the target.
    """
    (B, T, N, H, W), blocks = sizes, blocks or of_family(CHUNK_BLOCKS, target)
    if not target.multiplies_float32:
        raise NotImplementedError(f"the matrix units of {target} do not multiply float32")
    _require_widths(H, W, CHUNK_WIDTHS)
    memories = B, N, -(-T // blocks.tokens), H, W
    require_elements(memories, B * N * T * max(H, W), f", one per {blocks.tokens} tokens")


def launches_of_step(heads: DeltaHeads, batch: int, target: Target) -> str:
    """Returns the number of launches of a step, in words.

    Raises:
        NotImplementedError: the kernels do not support the heads.
    """
    require_kernels(heads, batch)
    columns = blocks_of(batch * heads.value_heads, target).columns
    return "one launch" if columns >= heads.value_width else "two launches"


def require_kernels(heads: DeltaHeads, batch: int) -> None:
    """Raises NotImplementedError, with the reason, for heads that the kernels do not support."""
    _require_widths(heads.key_width, heads.value_width, WIDTHS)
    require_elements((batch, heads.value_heads, heads.key_width, heads.value_width))


def _require_widths(H: int, W: int, widths: tuple[int, ...]) -> None:
    for name, width in (("keys", H), ("values", W)):
        require_width(name, width, widths)


def check_operands(
    token: Token, parameters: Parameters, state: RecurrentState, heads: DeltaHeads, lengths_B=None
) -> None:
    """Raises ValueError, with both shapes, for the first operand that does not fit."""
    if heads.value_heads % heads.key_heads:
        raise ValueError(
            f"{heads.value_heads} value heads and {heads.key_heads} key heads: value heads must be"
            " a multiple of key heads"
        )
    sizes = dict(B=token.qkv_BC.shape[0], L=state.inputs_BLC.shape[1], C=heads.channels)
    sizes |= dict(N=heads.value_heads, H=heads.key_width, W=heads.value_width)
    arrays = {**token._asdict(), **parameters._asdict(), **state._asdict()}
    if lengths_B is not None:
        arrays["lengths_B"] = lengths_B
    for name, array in arrays.items():
        expected = tuple(sizes[axis] for axis in name.rpartition("_")[2])
        if name == "filters_LC":
            expected = sizes["L"] + 1, sizes["C"]
        require_shape(name, array, expected)
    require_float32("memory_BNHW", state.memory_BNHW)
