"""A stack of linear layers, one for each part of a token, such as the latents of its heads."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from rocmforge_jax.backends import Numerics, Operation, choose, cpp, differentiable
from rocmforge_jax.nn.expert_stacks import Stack, require_packed
from rocmforge_jax.nn.linear import Experts, through_expert
from rocmforge_jax.quant.multiply import require_cpp


def through_each(x_BTEI, stack: Experts):
    """Applies linear layer e of a stack to part e of each token.

    Without C++, layers are computed one after another, so only one packed layer at a time is
    dequantised.

    Args:
        x_BTEI: The tokens, each with E parts.
        stack: The E layers.

    Returns:
        [B, T, E, out] in x's dtype.

    Raises:
        ValueError: The stack does not have E layers.
    """
    E = stack.kernel.shape[0]
    if x_BTEI.shape[2] != E:
        raise ValueError(f"{x_BTEI.shape[2]} parts of a token go through a stack of {E} layers")
    x_PI, arrays = x_BTEI.reshape(-1, x_BTEI.shape[-1]), Stack.of(stack)
    run = _ThroughEach(stack.numerics)
    if choose(EACH, (len(x_PI), stack), stack.numerics.backend).name == "cpp":
        y_PO = differentiable(run, x_PI, arrays)
    else:
        y_PO = run.plain(x_PI, arrays)
    return y_PO.reshape(*x_BTEI.shape[:-1], -1)


def _check_cpp(rows: int, stack) -> str:
    cpp.instructions()
    (weight,) = require_packed([stack])
    mode = stack.numerics.activations
    used = require_cpp(weight, mode)
    if not rows:
        raise NotImplementedError("there is no token")
    return f"all layers in one call, {mode} activations, C++ with {used}"


#: Fused: where C++ does not support it, its layers are computed one by one.
EACH = Operation("stack of layers", {"cpp": _check_cpp}, fused=True)


@dataclasses.dataclass(frozen=True)
class _ThroughEach:
    """The layers as a function of arrays: in C++, and one after another for gradients."""

    numerics: Numerics

    def __call__(self, x_PI, stack: Stack):
        E = stack.kernel.shape[0]
        layers_P = jnp.tile(jnp.arange(E, dtype=jnp.int32), len(x_PI) // E)
        mode = self.numerics.activations
        return cpp.multiply(x_PI, [stack.product(layers_P)], mode=mode, dtype=x_PI.dtype)[0]

    def plain(self, x_PI, stack: Stack):
        E = stack.kernel.shape[0]
        parts = jnp.moveaxis(x_PI.reshape(-1, E, x_PI.shape[-1]), 1, 0)
        layer = functools.partial(through_expert, numerics=self.numerics)
        each = jax.lax.map(lambda part: layer(part[0], part[1], *stack), (parts, jnp.arange(E)))
        return jnp.moveaxis(each, 0, 1).reshape(len(x_PI), -1)
