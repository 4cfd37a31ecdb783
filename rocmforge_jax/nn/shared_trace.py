"""Calls the layers of a model so that layers of one structure are traced once."""

import functools

import jax
from flax import nnx

from pallas_kernels import targets
from rocmforge_jax.backends import cpp, recording
from rocmforge_jax.backends.on_mesh import current_mesh
from rocmforge_jax.quant import QParam


def shared_trace(block: nnx.Module, *operands, remat: bool = False):
    """Calls block(*operands), traced and lowered once for all blocks of one structure.

    Tracing 24 layers one by one takes a second and a half. XLA inlines the shared function. A block
    that holds more than weights, say a dropout's random state, which a call may change, is called
    as it is.

    Args:
        block: The module to call.
        operands: Its arguments.
        remat: Whether gradients compute the block again, in place of keeping what it computed.
    """
    if recording() or not _holds_weights_alone(block):
        return _again(block, operands) if remat else block(*operands)
    graphdef, state = nnx.split(block)
    # The block's numerics are in the graphdef. These decide with them which backends are traced.
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
