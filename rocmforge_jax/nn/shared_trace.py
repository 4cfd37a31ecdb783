"""Calls the layers of a model such that layers with the same structure are traced only once."""

import functools

import jax
from flax import nnx

from pallas_kernels import targets
from rocmforge_jax.backends import cpp, recording
from rocmforge_jax.backends.on_mesh import current_mesh
from rocmforge_jax.quant import QParam


def shared_trace(block: nnx.Module, *operands, remat: bool = False):
    """Calls block(*operands), traced and lowered once for all blocks with the same structure.

    This makes starting faster (measured: docs/kernels.md), and XLA inlines the shared function. A
    block with variables other than weights, for example a dropout's random state, is called
    directly, because a call may change them.

    Args:
        block: The module to call.
        operands: Its arguments.
        remat: Whether gradients recompute the block instead of keeping its intermediate results.
    """
    if recording() or not _holds_weights_alone(block):
        return _again(block, operands) if remat else block(*operands)
    graphdef, state = nnx.split(block)
    # The traced backends depend on the numerics in the graphdef and on the machine.
    machine = targets.current(), cpp.usable(), current_mesh()
    return _call(graphdef, machine, remat, state, operands)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _call(graphdef, machine, remat, state, operands):
    def call(state, operands):
        return nnx.merge(graphdef, state)(*operands)

    return (jax.checkpoint(call) if remat else call)(state, operands)


def _again(block, operands):
    """Calls a block that gradients compute again, and keeps what the call changes in it."""
    graphdef, state = nnx.split(block)

    @jax.checkpoint
    def call(state, operands):
        inner = nnx.merge(graphdef, state)
        return inner(*operands), nnx.state(inner, nnx.Not(nnx.Any(nnx.Param, QParam)))

    result, changed = call(state, operands)
    nnx.update(block, changed)
    return result


def _holds_weights_alone(block) -> bool:
    if not isinstance(block, nnx.Module):
        return False
    variables = jax.tree.leaves(nnx.state(block), is_leaf=lambda v: isinstance(v, nnx.Variable))
    return all(isinstance(variable, nnx.Param | QParam) for variable in variables)
