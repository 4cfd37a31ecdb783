"""The selective state space for one token and for many: checks operands, then runs the kernels.

`rocmforge_jax.nn` computes the cases that the kernels reject with NotImplementedError.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.packing import GROUP
from pallas_kernels.recurrence.operands import (
    RecurrentState,
    require_elements,
    require_float32,
    require_shape,
    require_width,
)
from pallas_kernels.selective_scan import chunks, kernels
from pallas_kernels.selective_scan.blocks import CHUNK_BLOCKS, Blocks, ChunkBlocks, blocks_of
from pallas_kernels.selective_scan.operands import Parameters, ScanHeads, Tokens
from pallas_kernels.targets import Target, of_family

#: Widths of states that the kernels support.
STATE_WIDTHS = (16, 32, 64, 128, 256)
#: Widths of heads that the kernels support: multiples of the smallest tile of a matrix product.
HEAD_WIDTHS = tuple(range(16, 257, 16))


def step(
    projected_BF: jax.Array,
    parameters: Parameters,
    state: RecurrentState,
    heads: ScanHeads,
    *,
    epsilon: float,
    target: Target,
    lengths_B: jax.Array | None = None,
    activations: str | None = None,
    blocks: Blocks | None = None,
) -> Any:
    """Computes a selective state space for one token of each sequence, in two launches.

    Args:
        projected_BF: the outputs of the projection, in any float dtype and the order of
            `ScanHeads`.
        parameters: the parameters of the layer.
        state: the state after the previous tokens. It is updated in place if it is donated.
        heads: how channels are divided into heads and groups.
        epsilon: the epsilon of the norm; unused without a norm.
        target: the compilation target.
        lengths_B: integers, 0 for a sequence that has no new token and keeps its state. None: each
            sequence has a new token.
        activations: a mode of `qmatmul.activations`, or None.
        blocks: tile sizes; the default depends on the target.

    Returns:
        The output [B, I], in the dtype of `projected_BF`, and the state. With `activations`, a
        triple: output, state, and the Activations of the rows of the output.

    Raises:
        NotImplementedError: the kernels do not support the operands.
        ValueError: the operands do not fit together.
    """
    _check_step(projected_BF, parameters, state, heads, lengths_B)
    check_step(heads, len(projected_BF))
    if activations is not None and heads.group_width % GROUP:
        raise NotImplementedError(
            f"groups of {heads.group_width}, only multiples of {GROUP} can be quantised"
        )
    blocks = blocks or blocks_of(len(projected_BF) * heads.heads, target)
    lengths_B = None if lengths_B is None else lengths_B.astype(jnp.int32)
    operands = kernels.Operands(state, projected_BF, parameters, lengths_B)
    return kernels.step(operands, heads, epsilon, activations, blocks, target)


def scan(
    tokens: Tokens,
    a_N: jax.Array,
    d_N: jax.Array,
    memory_BNHW: jax.Array,
    *,
    target: Target,
    exact: bool = True,
    blocks: ChunkBlocks | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Applies a selective state space to T tokens of each sequence, in three launches.

    A token with a time step of 0 leaves its memory unchanged.

    Args:
        tokens: float32 arrays.
        a_N: the rates of the memories, at most 0, float32.
        d_N: the factors of x in the outputs, float32.
        memory_BNHW: the memories after the previous tokens, float32. They are updated in place if
            they are donated.
        target: the compilation target.
        exact: whether products keep float32. If not, NVIDIA's matrix units round their operands to
            tensorfloat32, for an error of about 4e-4.
        blocks: tile sizes; the default depends on the target.

    Returns:
        The outputs [B, T, N, H] and the memories, both float32.

    Raises:
        NotImplementedError: the kernels do not support the sizes, or the target.
        ValueError: the operands do not fit together.
    """
    (B, T, N, H), (K, W) = tokens.x_BTNH.shape, tokens.b_BTKW.shape[-2:]
    _require_multiple(N, K)
    blocks = blocks or of_family(CHUNK_BLOCKS, target)
    check_scan((B, T, N, H, W), target, blocks)
    expected = dict(dt_BTN=(B, T, N), b_BTKW=(B, T, K, W), c_BTKW=(B, T, K, W), a_N=(N,), d_N=(N,))
    expected["memory_BNHW"] = B, N, H, W
    arrays = tokens._asdict() | dict(a_N=a_N, d_N=d_N, memory_BNHW=memory_BNHW)
    for name, shape in expected.items():
        require_shape(name, arrays[name], shape)
    for name, array in arrays.items():
        require_float32(name, array)
    return chunks.scan(tokens, a_N, d_N, memory_BNHW, exact, blocks, target)


def check_scan(sizes: tuple[int, ...], target: Target, blocks: ChunkBlocks | None = None) -> None:
    """Raises NotImplementedError, with the reason, for what `scan` does not support.

    Args:
        sizes: B, T, N, H and W.
        target: the compilation target.
        blocks: tile sizes; the default depends on the target.
    """
    (B, T, N, H, W), blocks = sizes, blocks or of_family(CHUNK_BLOCKS, target)
    if not target.multiplies_float32:
        raise NotImplementedError(f"the matrix units of {target} do not multiply float32")
    _require_widths(H, W)
    memories = B, N, -(-T // blocks.tokens), H, W
    require_elements(memories, B * N * T * max(H, W), f", one per {blocks.tokens} tokens")


def check_step(heads: ScanHeads, batch: int) -> None:
    """Raises NotImplementedError, with the reason, for heads that `step` does not support."""
    _require_widths(heads.head_width, heads.state_width)
    require_elements((batch, heads.heads, heads.head_width, heads.state_width))


def _require_widths(H: int, W: int) -> None:
    require_width("heads", H, HEAD_WIDTHS)
    require_width("states", W, STATE_WIDTHS)


def _require_multiple(N: int, K: int) -> None:
    if N % K:
        raise ValueError(f"{N} heads and {K} groups: heads must be a multiple of groups")


def _check_step(projected_BF, parameters, state, heads: ScanHeads, lengths_B) -> None:
    """Raises ValueError, with both shapes, for the first operand that does not fit."""
    _require_multiple(heads.heads, heads.groups)
    sizes = dict(B=len(projected_BF), F=heads.projected, L=state.inputs_BLC.shape[1])
    sizes |= dict(C=heads.channels, I=heads.inner, N=heads.heads)
    sizes |= dict(H=heads.head_width, W=heads.state_width)
    arrays = dict(projected_BF=projected_BF, **parameters._asdict(), **state._asdict())
    arrays["lengths_B"] = lengths_B
    for name, array in arrays.items():
        expected = tuple(sizes[axis] for axis in name.rpartition("_")[2])
        if name == "filters_LC":
            expected = sizes["L"] + 1, sizes["C"]
        if array is not None:
            require_shape(name, array, expected)
    require_float32("memory_BNHW", state.memory_BNHW)
