"""The gated delta net for one token of each sequence: checks the operands, then runs the kernels.

`rocmforge_jax.nn.delta_net` computes the cases that the kernels reject with NotImplementedError.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.delta_rule import kernels
from pallas_kernels.delta_rule.blocks import Blocks, blocks_of
from pallas_kernels.delta_rule.operands import DeltaHeads, DeltaState, Parameters, Token
from pallas_kernels.packing import GROUP
from pallas_kernels.targets import Target

#: Widths of keys and values that the kernels support.
WIDTHS = (16, 32, 64, 128, 256)
#: Offsets of the Triton backend count elements in signed 32 bits.
MAX_ELEMENTS = 2**31 - 1


def step(
    token: Token,
    parameters: Parameters,
    state: DeltaState,
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
    for name, width in (("keys", heads.key_width), ("values", heads.value_width)):
        if width not in WIDTHS:
            known = ", ".join(map(str, WIDTHS))
            raise NotImplementedError(f"{name} {width} wide: the kernels know widths of {known}")
    memory = batch, heads.value_heads, heads.key_width, heads.value_width
    if math.prod(memory) > MAX_ELEMENTS:
        raise NotImplementedError(
            f"memories of shape {list(memory)}: the kernels address at most {MAX_ELEMENTS} elements"
        )


def check_operands(
    token: Token, parameters: Parameters, state: DeltaState, heads: DeltaHeads, lengths_B=None
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
        if array.shape != expected:
            raise ValueError(f"{name} must be {list(expected)}, got {list(array.shape)}")
    if state.memory_BNHW.dtype != jnp.float32:
        raise ValueError(f"memory_BNHW must be float32, got {state.memory_BNHW.dtype}")
