"""A mixture of experts in Pallas kernels, for few and for many pairs of a token and an expert.

Few pairs take two launches of the GEMV. Many, in a narrow float type, are brought into the order of
their experts and take three launches of the skinny GEMM.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from pallas_kernels.qmatmul import Product
from pallas_kernels.router import reference as router_reference
from rocmforge_jax import quant
from rocmforge_jax.backends import Numerics, Operation, differentiable, pallas
from rocmforge_jax.nn.linear import Experts, Linear, how
from rocmforge_jax.nn.mlp import silu_gate
from rocmforge_jax.nn.norm import RMSNorm, rms_norm
from rocmforge_jax.quant.multiply import require_pallas, require_transposed


def _check_route(tokens, router, norm) -> str:
    on = pallas.target()
    if type(router) is not Linear or type(norm) is not RMSNorm:
        classes = type(router).__name__, type(norm).__name__
        raise NotImplementedError(f"the router is a {classes[0]}, the norm a {classes[1]}")
    if isinstance(router.kernel.get_value(), quant.QTensor) or router.bias is not None:
        raise NotImplementedError("the router is quantised or has a bias")
    most = pallas.gemv_rows("float32")
    if not 0 < tokens <= most:
        raise NotImplementedError(f"{tokens} tokens, the kernels take 1 to {most}")
    pallas.require("the kernel that chooses experts", _routing_error, 1e-5)
    return f"norm, product and choice in two launches, {on}"


def _check_mixture(few, dtype, stacks, norm) -> str:
    pallas.target()
    if others := [type(stack).__name__ for stack in stacks if type(stack) is not Experts]:
        raise NotImplementedError(f"a stack of experts is a {others[0]}")
    if type(norm) not in (RMSNorm, type(None)):
        raise NotImplementedError(f"the norm is a {type(norm).__name__}")
    weights = [stack.kernel.get_value() for stack in stacks]
    if not all(isinstance(weight, quant.QTensor) for weight in weights):
        raise NotImplementedError("a stack of experts is not packed")
    if not few and dtype.itemsize > 2:
        raise NotImplementedError("many pairs in float32: the matrix units do not keep float32")
    mode = stacks[0].numerics.activations
    (on,) = {require_pallas(weight, mode) for weight in weights}
    for weight in weights:
        require_transposed(weight)
    does = "two launches for all pairs" if few else "pairs ordered by expert, three launches"
    return f"{does}, {on}"


#: Both only combine operations that plain XLA and other kernels can do one by one.
ROUTE = Operation("choice of experts", {"pallas": _check_route}, fused=True)
MIXTURE = Operation("experts", {"pallas": _check_mixture}, fused=True)


def choose_experts(x_TD, router, norm, used: int, renormalize: bool):
    """Returns the weights and ids of each token's experts, both [T, used]."""
    route = _Route(used, renormalize, norm.epsilon)
    operands = x_TD, router.kernel.get_value(), norm.scale.get_value()
    return differentiable(route, *operands)


@dataclasses.dataclass(frozen=True)
class _Route:
    """The kernels that choose experts as a function of arrays, and plain XLA."""

    used: int
    renormalize: bool
    epsilon: float

    def __call__(self, *operands):
        return pallas.route(*operands, **dataclasses.asdict(self))

    def plain(self, *operands):
        return router_reference.route(*operands, **dataclasses.asdict(self))


def _routing_error():
    """Returns the largest error of a weight, infinite where another expert is chosen."""
    x = jax.random.normal(jax.random.key(0), (2, 800))
    kernel = jax.random.normal(jax.random.key(1), (800, 60)) / 30
    route, operands = _Route(4, True, 1e-5), (x, kernel, jnp.ones(800))
    (found, experts), (exact, others) = route(*operands), route.plain(*operands)
    return jnp.where((experts == others).all(), jnp.abs(found - exact).max(), jnp.inf)


def mixture(few: bool, x_TD, norm, experts_P, stacks, numerics: Numerics):
    """Returns the output of each pair, float32 [P, D], those of a token one after another."""
    weights = [stack.kernel.get_value() for stack in stacks]
    experts_P = experts_P.astype(jnp.int32)
    if few:
        scale, epsilon = (None, 0.0) if norm is None else (norm.scale.get_value(), norm.epsilon)
        return differentiable(_Pairs(numerics, epsilon), x_TD, scale, experts_P, *weights)
    x_TD = x_TD if norm is None else norm(x_TD)
    return differentiable(_ByExpert(numerics), x_TD, experts_P, *weights)


def _one_expert(x, e, gate, up, down, numerics):
    """Computes one expert's SwiGLU of x [..., D] -> float32 [..., D]."""

    def linear(x, stack):
        return quant.expert_matmul(x, stack, e, **how(numerics))

    return linear(silu_gate(linear(x, gate), linear(x, up)), down).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """Few pairs: each reads its expert alone."""

    numerics: Numerics
    epsilon: float

    def __call__(self, x_TD, scale_D, experts_P, gate, up, down):
        multiply = functools.partial(pallas.gemv, mode=self.numerics.activations)
        gated = [Product((gate, up), experts=experts_P)]
        (hidden,) = multiply(x_TD, gated, dtype=x_TD.dtype, norm=scale_D, epsilon=self.epsilon)
        return multiply(hidden, [Product((down,), experts=experts_P)], dtype=jnp.float32)[0]

    def plain(self, x_TD, scale_D, experts_P, gate, up, down):
        x_TD = x_TD if scale_D is None else rms_norm(x_TD, scale_D, self.epsilon)
        each = jnp.repeat(x_TD, len(experts_P) // len(x_TD), axis=0)
        return jax.lax.map(
            lambda of: _one_expert(of[0], of[1], gate, up, down, self.numerics), (each, experts_P)
        )


@dataclasses.dataclass(frozen=True)
class _ByExpert:
    """Many pairs: in the order of their experts, each expert's in whole tiles of rows."""

    numerics: Numerics

    def __call__(self, x_TD, experts_P, gate, up, down):
        P, T, E = len(experts_P), len(x_TD), gate.shape[0]
        rows = pallas.rows_of_an_expert(P, E)
        place_P, expert_of_tile = _places(experts_P, E, rows)
        token_P = jnp.arange(P, dtype=jnp.int32) // (P // T)
        token_of_row = jnp.zeros(len(expert_of_tile) * rows, jnp.int32).at[place_P].set(token_P)
        multiply = functools.partial(pallas.skinny_product, experts=expert_of_tile)
        x = x_TD[token_of_row]
        hidden = silu_gate(multiply(x, gate), multiply(x, up)).astype(x_TD.dtype)
        return multiply(hidden, down)[place_P]

    def plain(self, x_TD, experts_P, gate, up, down):
        experts_TU = experts_P.reshape(len(x_TD), -1)

        def expert(y_TUD, e):
            y_TD = _one_expert(x_TD, e, gate, up, down, self.numerics)
            return jnp.where((experts_TU == e)[..., None], y_TD[:, None], y_TUD), None

        start = jnp.zeros((*experts_TU.shape, x_TD.shape[1]), jnp.float32)
        y_TUD, _ = jax.lax.scan(expert, start, jnp.arange(gate.shape[0]))
        return y_TUD.reshape(len(experts_P), -1)


def _places(experts_P, E: int, rows: int):
    """Assigns rows to pairs so that each tile of `rows` rows has pairs of one expert.

    Returns (int32 [P], the row of each pair; int32 [tiles], the expert of each tile, -1 for tiles
    without pairs).
    """
    P = len(experts_P)
    count_E = jnp.zeros(E, jnp.int32).at[experts_P].add(1)
    order_P = jnp.argsort(experts_P)  # stable
    rank_P = jnp.arange(P, dtype=jnp.int32) - (jnp.cumsum(count_E) - count_E)[experts_P[order_P]]
    tiles_E = (count_E + rows - 1) // rows
    end_E = jnp.cumsum(tiles_E)
    place = (end_E - tiles_E)[experts_P[order_P]] * rows + rank_P
    # All whole tiles, and one of each expert that is not whole.
    tile = jnp.arange(P // rows + min(E, P), dtype=jnp.int32)
    expert = jnp.searchsorted(end_E, tile, side="right").astype(jnp.int32)
    return jnp.zeros(P, jnp.int32).at[order_P].set(place), jnp.where(expert < E, expert, -1)
