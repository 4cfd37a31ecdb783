"""A mixture of experts in Pallas kernels, for few and for many (token, expert) pairs.

Few pairs are computed in two launches of the GEMV. Pairs with the same expert may share one read of
its weights. Many pairs, in bfloat16 or float16, are sorted by expert and computed in two launches
of the skinny GEMM.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from pallas_kernels.router import Routing
from pallas_kernels.router import reference as router_reference
from rocmforge_jax import quant
from rocmforge_jax.backends import Numerics, Operation, differentiable, pallas
from rocmforge_jax.nn.expert_stacks import Stacks, require_packed
from rocmforge_jax.nn.linear import Linear, value_or_none
from rocmforge_jax.nn.moe_cpp import check_cpp
from rocmforge_jax.nn.norm import is_fusable, require_fusable, rms_norm
from rocmforge_jax.quant.multiply import require_pallas, require_transposed

#: The kernels of the router read its weight once per token. For 32 tokens, XLA is faster.
MOST_TOKENS = 16


def _check_route(tokens, router, norm, routing: Routing) -> str:
    on = pallas.target()
    if type(router) is not Linear or not is_fusable(norm):
        classes = type(router).__name__, type(norm).__name__
        raise NotImplementedError(f"the router is a {classes[0]}, the norm a {classes[1]}")
    if isinstance(router.kernel.get_value(), quant.QTensor) or router.output_scale is not None:
        raise NotImplementedError("the router is quantised or has an output scale")
    if routing.groups > 1:
        raise NotImplementedError(f"the experts are in {routing.groups} groups")
    if not 0 < tokens <= MOST_TOKENS:
        raise NotImplementedError(f"{tokens} tokens, the kernels take 1 to {MOST_TOKENS}")
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
    """Returns the largest error of a weight in a small case; infinite if the experts differ."""
    x = jax.random.normal(jax.random.key(0), (2, 800))
    kernel = jax.random.normal(jax.random.key(1), (800, 60)) / 30
    biases = [None, None]
    if scoring != "softmax":
        biases = [jax.random.normal(jax.random.key(key), (60,)) / 10 for key in (2, 3)]
    route, operands = _Route(Routing(4, scoring, True), 1e-5), (x, kernel, jnp.ones(800), *biases)
    (found, experts), (exact, others) = route(*operands), route.plain(*operands)
    return jnp.where((experts == others).all(), jnp.abs(found - exact).max(), jnp.inf)


def mixture(x_TD, norm, experts_P, stacks: Stacks, numerics: Numerics):
    """Returns the output of each pair, float32 [P, D]; the pairs of a token are consecutive."""
    experts_P, arrays = experts_P.astype(jnp.int32), stacks.arrays()
    weights = [stack.kernel for stack in arrays.all]
    together = pallas.shared_rows(len(experts_P), arrays.up.kernel.shape[0], weights, x_TD.dtype)
    if together is not None:
        scale, epsilon = (None, 0.0) if norm is None else (norm.scale.get_value(), norm.epsilon)
        return differentiable(_Pairs(numerics, epsilon, together), x_TD, scale, experts_P, arrays)
    x_TD = x_TD if norm is None else norm(x_TD)
    return differentiable(_ByExpert(numerics), x_TD, experts_P, arrays)


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """Few pairs: each is computed alone, or with a few others that have the same expert."""

    numerics: Numerics
    epsilon: float
    #: The largest number of pairs with the same expert that are computed together.
    together: int

    def __call__(self, x_TD, scale_D, experts_P, stacks: Stacks):
        E, shared = stacks.up.kernel.shape[0], None
        if self.together > 1:
            shared = _shared(experts_P, E, self.together)
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
    """Many pairs: sorted by expert. The pairs of each expert fill whole tiles of rows."""

    numerics: Numerics

    def __call__(self, x_TD, experts_P, stacks: Stacks):
        P, T, E = len(experts_P), len(x_TD), stacks.up.kernel.shape[0]
        rows = pallas.rows_of_an_expert(P, E)
        place_P, pair_of_row, expert_of_tile = _places(experts_P, E, rows)
        token_of_row = pair_of_row // (P // T)
        y = stacks.through_pairs(pallas.skinny_gemm, x_TD, expert_of_tile, rows=token_of_row)
        return y[place_P]

    def plain(self, x_TD, experts_P, stacks: Stacks):
        return stacks.expert_by_expert(x_TD, experts_P, self.numerics)


def _shared(experts_P, E: int, rows: int):
    """Assigns pairs to tiles of at most `rows` pairs with the same expert.

    All pairs are compared with all others. For a few hundred pairs, this is faster than sorting.

    Args:
        experts_P: The expert of each pair.
        E: Number of experts.
        rows: Size of a tile.

    Returns:
        int32 [tiles, rows], the indices of each tile's pairs. A tile with fewer pairs repeats its
        first one; a tile without pairs contains -1.
    """
    P = len(experts_P)
    pair_P = jnp.arange(P, dtype=jnp.int32)
    own_P1, others_1P = experts_P[:, None], experts_P[None]
    same_PP = own_P1 == others_1P
    rank_P = jnp.sum(same_PP & (pair_P[None] < pair_P[:, None]), axis=1, dtype=jnp.int32)
    place_P = rank_P % rows
    before_PP = (others_1P < own_P1) | same_PP & (pair_P[None] <= pair_P[:, None])
    tile_P = jnp.sum(before_PP & (place_P == 0)[None], axis=1, dtype=jnp.int32) - 1
    # An upper bound: all full tiles, and one partial tile per expert.
    tiles = min(P, (P + min(E, P) * (rows - 1)) // rows)
    slot = jnp.arange(tiles * rows, dtype=jnp.int32)
    found = jnp.where(slot[:, None] == (tile_P * rows + place_P)[None], pair_P[None] + 1, 0)
    pairs = found.sum(axis=1, dtype=jnp.int32).reshape(tiles, rows) - 1
    return jnp.where(pairs < 0, pairs[:, :1], pairs)


def _places(experts_P, E: int, rows: int):
    """Assigns rows to pairs such that all pairs in a tile have the same expert.

    Args:
        experts_P: The expert of each pair.
        E: Number of experts.
        rows: Rows of a tile.

    Returns:
        The row of each pair, int32 [P]; the pair of each row, int32 [tiles * rows], any pair for a
        row without one; and the expert of each tile, int32 [tiles], -1 for a tile without pairs.
    """
    P = len(experts_P)
    pair_P, expert_E = jnp.arange(P, dtype=jnp.int32), jnp.arange(E, dtype=jnp.int32)
    count_E = jnp.sum(experts_P[:, None] == expert_E[None], axis=0, dtype=jnp.int32)
    tiles_E = (count_E + rows - 1) // rows
    end_E = jnp.sum(jnp.where(expert_E[None] <= expert_E[:, None], tiles_E[None], 0), axis=1)
    place_P = (end_E - tiles_E)[experts_P] * rows + _rank_in_expert(experts_P, count_E)
    # An upper bound: all full tiles, and one partial tile per expert.
    tile = jnp.arange(P // rows + min(E, P), dtype=jnp.int32)
    # A binary search would be a loop of kernel launches.
    expert = jnp.sum(end_E[None] <= tile[:, None], axis=1, dtype=jnp.int32)
    row = jnp.arange(len(tile) * rows, dtype=jnp.int32)
    if P <= MOST_COMPARED:
        pair_of_row = jnp.sum(jnp.where(row[:, None] == place_P[None], pair_P[None], 0), axis=1)
    else:
        pair_of_row = jnp.zeros_like(row).at[place_P].set(pair_P)
    return place_P, pair_of_row, jnp.where(expert < E, expert, -1)


#: Up to this number of pairs, comparing all of them is faster than sorting, which takes several
#: launches.
MOST_COMPARED = 512


def _rank_in_expert(experts_P, count_E):
    """Returns how many earlier pairs have the same expert as each pair, int32 [P]."""
    P = len(experts_P)
    pair_P = jnp.arange(P, dtype=jnp.int32)
    if P <= MOST_COMPARED:
        earlier_PP = pair_P[None] < pair_P[:, None]
        same_PP = experts_P[:, None] == experts_P[None]
        return jnp.sum(same_PP & earlier_PP, axis=1, dtype=jnp.int32)
    order_P = jnp.argsort(experts_P)  # stable
    rank_P = pair_P - (jnp.cumsum(count_E) - count_E)[experts_P[order_P]]
    return jnp.zeros(P, jnp.int32).at[order_P].set(rank_P)
