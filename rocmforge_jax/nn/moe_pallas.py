"""A mixture of experts in Pallas kernels, for few and for many (token, expert) pairs.

Few pairs are computed in two launches of the GEMV. Pairs with the same expert may share one read of
its weights. Many pairs, in bfloat16 or float16, are sorted by expert and computed in two launches
of the skinny GEMM.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from pallas_kernels.router import Routing, Tiles
from pallas_kernels.router import reference as router_reference
from rocmforge_jax import quant
from rocmforge_jax.backends import Numerics, Operation, differentiable, pallas
from rocmforge_jax.nn.expert_stacks import Stacks, require_packed
from rocmforge_jax.nn.linear import Linear, value_or_none
from rocmforge_jax.nn.moe_cpp import check_cpp
from rocmforge_jax.nn.norm import is_fusable, require_fusable, rms_norm
from rocmforge_jax.quant.multiply import require_pallas, require_transposed


def _check_route(tokens, router, norm, routing: Routing) -> str:
    on = pallas.target()
    if type(router) is not Linear or not is_fusable(norm):
        classes = type(router).__name__, type(norm).__name__
        raise NotImplementedError(f"the router is a {classes[0]}, the norm a {classes[1]}")
    if isinstance(router.kernel.get_value(), quant.QTensor) or router.output_scale is not None:
        raise NotImplementedError("the router is quantised or has an output scale")
    if routing.groups > 1:
        raise NotImplementedError(f"the experts are in {routing.groups} groups")
    if not 0 < tokens <= (most := pallas.most_routed_tokens()):
        raise NotImplementedError(f"{tokens} tokens, the kernels take 1 to {most}")
    how = "" if routing.scoring == "softmax" else f" by {routing.scoring}"
    error = functools.partial(_routing_error, routing.scoring)
    pallas.require(f"the kernel that chooses experts{how}", error, 1e-5)
    return f"norm, product and choice{how} in two launches, {on}"


def _check_mixture(pairs, dtype, stacks: Stacks, norm) -> str:
    weights = require_packed(stacks.all)
    together = pallas.shared_rows(pairs, stacks.up.kernel.shape[0], weights, dtype)
    require_fusable(norm)
    if together is None and dtype.itemsize > 2:
        raise NotImplementedError("many pairs in float32: the matrix units do not keep float32")
    mode = stacks.down.numerics.activations
    (on,) = {require_pallas(weight, mode) for weight in weights}
    for weight in weights:
        require_transposed(weight)
    if together == 1:
        return f"two launches for all pairs with {stacks.activation}, {on}"
    if together:
        return (
            f"two launches, up to {together} pairs of an expert together, with"
            f" {stacks.activation}, {on}"
        )
    return f"pairs ordered by expert, two launches with {stacks.activation}, {on}"


#: Fused: where no backend supports one of these, its parts are computed one by one.
ROUTE = Operation("choice of experts", {"pallas": _check_route}, fused=True)
MIXTURE = Operation("experts", {"pallas": _check_mixture, "cpp": check_cpp}, fused=True)


def choose_experts(x_TD, router, norm, routing: Routing, selection_bias_E):
    """Returns the weights and ids of each token's experts, both [T, used]."""
    operands = x_TD, router.kernel.get_value(), norm.scale.get_value()
    biases = value_or_none(router.bias), selection_bias_E
    return differentiable(_Route(routing, norm.epsilon), *operands, *biases)


@dataclasses.dataclass(frozen=True)
class _Route:
    """The choice of experts as a function of arrays: in Pallas, and in plain XLA for gradients."""

    routing: Routing
    epsilon: float

    def __call__(self, *operands):
        return self._by(pallas.route, *operands)

    def plain(self, *operands):
        return self._by(router_reference.route, *operands)

    def _by(self, route, x_TD, kernel_DE, scale_D, bias_E, selection_bias_E):
        biases = dict(bias_E=bias_E, selection_bias_E=selection_bias_E)
        return route(x_TD, kernel_DE, scale_D, self.routing, **biases, epsilon=self.epsilon)


def _routing_error(scoring: str):
    """Returns the largest error of a weight in small cases; infinite if experts differ."""
    kernel, biases = jax.random.normal(jax.random.key(1), (800, 60)) / 30, [None, None]
    if scoring != "softmax":
        biases = [jax.random.normal(jax.random.key(key), (60,)) / 10 for key in (2, 3)]
    route, errors = _Route(Routing(4, scoring, True), 1e-5), []
    for tokens in (2, pallas.most_routed_tokens()):
        x = jax.random.normal(jax.random.key(0), (tokens, 800))
        operands = x, kernel, jnp.ones(800), *biases
        (found, experts), (exact, others) = route(*operands), route.plain(*operands)
        error = jnp.abs(found - exact).max()
        errors.append(jnp.where((experts == others).all(), error, jnp.inf))
    return jnp.stack(errors).max()


def mixture(x_TD, norm, experts_P, stacks: Stacks, numerics: Numerics):
    """Returns the output of each pair, float32 [P, D]; the pairs of a token are consecutive."""
    experts_P, arrays = experts_P.astype(jnp.int32), stacks.arrays()
    weights = [stack.kernel for stack in arrays.all]
    together = pallas.shared_rows(len(experts_P), arrays.up.kernel.shape[0], weights, x_TD.dtype)
    scale, epsilon = (None, 0.0) if norm is None else (norm.scale.get_value(), norm.epsilon)
    if together is None:
        run = _ByExpert(numerics, epsilon)
    else:
        run = _Pairs(numerics, epsilon, together)
    return differentiable(run, x_TD, scale, experts_P, arrays)


def _by_expert(x_TD, experts_P, stacks: Stacks, rows: int) -> Tiles:
    """Groups pairs into tiles of rows with the same expert."""
    return pallas.by_expert(experts_P.reshape(len(x_TD), -1), stacks.up.kernel.shape[0], rows)


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """Few pairs: each is computed alone, or with a few others that have the same expert."""

    numerics: Numerics
    epsilon: float
    #: The largest number of pairs with the same expert that are computed together.
    together: int

    def __call__(self, x_TD, scale_D, experts_P, stacks: Stacks):
        shared = None
        if self.together > 1:
            shared = _by_expert(x_TD, experts_P, stacks, self.together).pairs
        multiply = functools.partial(pallas.gemv, mode=self.numerics.activations, shared=shared)
        norm = dict(norm=scale_D, epsilon=self.epsilon)
        return stacks.through_pairs(multiply, x_TD, experts_P, **norm)

    def plain(self, x_TD, scale_D, experts_P, stacks: Stacks):
        x_TD = x_TD if scale_D is None else rms_norm(x_TD, scale_D, self.epsilon)
        each = jnp.repeat(x_TD, len(experts_P) // len(x_TD), axis=0)
        return jax.lax.map(
            lambda of: stacks.one_expert(of[0], of[1], self.numerics), (each, experts_P)
        )


@dataclasses.dataclass(frozen=True)
class _ByExpert:
    """Many pairs: grouped by expert. The pairs of each expert fill whole tiles of rows."""

    numerics: Numerics
    epsilon: float

    def __call__(self, x_TD, scale_D, experts_P, stacks: Stacks):
        rows = pallas.rows_of_an_expert(len(experts_P), stacks.up.kernel.shape[0])
        tiles = _by_expert(x_TD, experts_P, stacks, rows)
        of_x = dict(rows=tiles.tokens.reshape(-1), norm=scale_D, epsilon=self.epsilon)
        return stacks.through_pairs(pallas.skinny_gemm, x_TD, tiles.experts, **of_x)[tiles.rows]

    def plain(self, x_TD, scale_D, experts_P, stacks: Stacks):
        x_TD = x_TD if scale_D is None else rms_norm(x_TD, scale_D, self.epsilon)
        return stacks.expert_by_expert(x_TD, experts_P, self.numerics)
