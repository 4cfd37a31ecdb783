"""Calling the layers of a model so that those of one structure are traced once."""

import functools

import jax
from flax import nnx

from rocmforge_jax.quant import QParam, kernels, native


def once(block: nnx.Module, *operands):
    """block(*operands), traced and lowered once for all blocks of the same structure, types and
    shapes; XLA inlines it.

    Tracing 24 layers one by one takes a second and a half. A block that holds more than weights,
    say a dropout's random state, which a call may change, is called as it is.
    """
    if not all(type(variable) in (nnx.Param, QParam) for variable in _variables(block)):
        return block(*operands)
    graphdef, state = nnx.split(block)
    # Which implementations are traced is decided by more than the block: another choice is another
    # trace.
    chosen_by = kernels.kernel_order(), kernels.targets.current(), native.usable()
    return _call(graphdef, chosen_by, state, operands)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _call(graphdef, chosen_by, state, operands):
    return nnx.merge(graphdef, state)(*operands)


def _variables(block):
    return jax.tree.leaves(nnx.state(block), is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
