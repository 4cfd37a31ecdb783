"""A mixture of experts in C++, in two calls for all (token, expert) pairs."""

import dataclasses
import functools

import jax.numpy as jnp

from rocmforge_jax.backends import Numerics, cpp, differentiable
from rocmforge_jax.nn.expert_stacks import Stacks, require_packed
from rocmforge_jax.nn.norm import require_fusable, rms_norm
from rocmforge_jax.quant.multiply import require_cpp


def check_cpp(pairs: int, dtype, stacks: Stacks, norm) -> str:
    """Describes how C++ computes a mixture; raises NotImplementedError if it cannot."""
    cpp.instructions()
    require_fusable(norm)
    mode = stacks.down.numerics.activations
    used = {require_cpp(weight, mode) for weight in require_packed(stacks.all)}
    does = f"two calls for all pairs with {stacks.activation}"
    return f"{does}, {mode} activations, C++ with {used.pop()}"


def mixture(x_TD, norm, experts_P, stacks: Stacks, numerics: Numerics):
    """Returns the output of each pair, float32 [P, D]; the pairs of a token are consecutive."""
    scale, epsilon = (None, 0.0) if norm is None else (norm.scale.get_value(), norm.epsilon)
    operands = x_TD, scale, experts_P.astype(jnp.int32), stacks.arrays()
    return differentiable(_Pairs(numerics, epsilon), *operands)


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """The mixture as a function of arrays: in C++, and in plain XLA for gradients."""

    numerics: Numerics
    epsilon: float

    def __call__(self, x_TD, scale_D, experts_P, stacks: Stacks):
        multiply = functools.partial(cpp.multiply, mode=self.numerics.activations)
        norm = dict(norm=scale_D, epsilon=self.epsilon)
        return stacks.through_pairs(multiply, x_TD, experts_P, **norm)

    def plain(self, x_TD, scale_D, experts_P, stacks: Stacks):
        x_TD = x_TD if scale_D is None else rms_norm(x_TD, scale_D, self.epsilon)
        plain = dataclasses.replace(self.numerics, backend="xla")
        return stacks.expert_by_expert(x_TD, experts_P, plain)
