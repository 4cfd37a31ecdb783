"""A mixture of experts: each token goes through the few experts that a router chooses for it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels import router as router_kernel
from pallas_kernels.qmatmul import GEMV_ROWS, Product, rows_of_an_expert
from pallas_kernels.targets import Target
from rocmforge_jax import quant
from rocmforge_jax.nn.fresh import normal
from rocmforge_jax.nn.linear import Linear
from rocmforge_jax.nn.mlp import silu_gate
from rocmforge_jax.nn.norm import RMSNorm, rms_norm
from rocmforge_jax.quant import kernels, trials


class Experts(nnx.Module):
    """The same linear layer of every expert. kernel: (E, in, out), an nnx.Param or a QParam."""

    def __init__(
        self,
        experts: int,
        in_features: int,
        out_features: int,
        *,
        dtype=jnp.float32,
        rngs: nnx.Rngs | None,
    ):
        shape = (experts, in_features, out_features)
        self.kernel = nnx.Param(normal(rngs, shape, in_features**-0.5, dtype))

    def __call__(self, x, expert, activations: str = quant.DEFAULT_MODE):
        """x [..., in] through one expert, an integer scalar -> [..., out].

        activations: as for `quant.matmul`.
        """
        return quant.expert_matmul(x, self.kernel, expert, activations=activations)


class ScalarGate(nnx.Module):
    """sigmoid(x @ kernel), one number a token: how much of a shared expert it takes. kernel: (in,)."""

    def __init__(self, in_features: int, *, dtype=jnp.float32, rngs: nnx.Rngs | None):
        self.kernel = nnx.Param(normal(rngs, (in_features,), in_features**-0.5, dtype))

    def __call__(self, x):
        """[..., in] -> [..., 1] in x's dtype."""
        return jax.nn.sigmoid(
            quant.matmul(x, self.kernel.get_value()[:, None], dtype=jnp.float32)
        ).astype(x.dtype)


def route(logits_TE, used: int, *, renormalize: bool):
    """Softmax over all experts, then the `used` likeliest of each token: (weights float32, ids
    int32), both [T, used].

    renormalize: the chosen weights are scaled to sum to 1.
    """
    weights, experts = jax.lax.top_k(jax.nn.softmax(logits_TE.astype(jnp.float32), axis=-1), used)
    return weights / weights.sum(axis=-1, keepdims=True) if renormalize else weights, experts


def choose_experts(
    x_TD,
    router: Linear,
    used: int,
    *,
    renormalize: bool,
    norm: RMSNorm | None = None,
    activations: str = quant.DEFAULT_MODE,
):
    """`route` of what `router` makes of x, after `norm` if there is one: for few tokens in two
    kernels, where there are some.

    activations: as for `quant.matmul`.
    """

    def by_route(x_TD, router, norm, used, renormalize):
        x_TD = x_TD if norm is None else norm(x_TD)
        return route(
            router(x_TD, jnp.float32, activations) if type(router) is Linear else router(x_TD),
            used,
            renormalize=renormalize,
        )

    return kernels.dispatch_fused(
        {"triton": _chosen_by_kernels}, None, by_route, x_TD, router, norm, used, renormalize
    )


def _chosen_by_kernels(x_TD, router, norm, used, renormalize):
    if type(router) is not Linear or type(norm) is not RMSNorm:
        raise NotImplementedError(
            f"the router is a {type(router).__name__}, the norm a {type(norm).__name__}"
        )
    kernel = router.kernel.get_value()
    if not 0 < len(x_TD) <= GEMV_ROWS:
        raise NotImplementedError(f"{len(x_TD)} tokens, the kernels take 1 to {GEMV_ROWS}")
    if isinstance(kernel, quant.QTensor) or router.bias is not None:
        raise NotImplementedError("the router is quantised or has a bias")
    how = _Routing(used, renormalize, norm.epsilon, router_target())
    return kernels.differentiable(how, x_TD, kernel, norm.scale.get_value())


def router_target() -> Target:
    """What to compile the kernels that choose experts for.

    NotImplementedError, with the reason, where there are none.
    """
    target = kernels.current_target()
    trials.require_working(
        "the kernel that chooses experts", target, functools.partial(_routing_error, target), 1e-5
    )
    return target


@dataclasses.dataclass(frozen=True)
class _Routing:
    """The kernels as a function of arrays, and plain XLA."""

    used: int
    renormalize: bool
    epsilon: float
    target: Target

    def __call__(self, x_TD, kernel_DE, scale_D):
        return _route(x_TD, kernel_DE, scale_D, self)

    def plain(self, x_TD, kernel_DE, scale_D):
        logits_TE = quant.matmul(
            rms_norm(x_TD, scale_D, self.epsilon), kernel_DE, dtype=jnp.float32
        )
        return route(logits_TE, self.used, renormalize=self.renormalize)


@functools.partial(jax.jit, static_argnums=3)
def _route(x_TD, kernel_DE, scale_D, how: _Routing):
    settings = dict(
        used=how.used, renormalize=how.renormalize, epsilon=how.epsilon, target=how.target
    )
    return router_kernel.route(x_TD, kernel_DE, scale_D, **settings)


def _routing_error(target):
    """Largest error of a weight on a small random router; infinite where another expert is chosen."""
    x, kernel = (
        jax.random.normal(jax.random.key(0), (2, 800)),
        jax.random.normal(jax.random.key(1), (800, 60)) / 30,
    )
    how = _Routing(4, True, 1e-5, target)
    (found, experts), (exact, others) = (
        how(x, kernel, jnp.ones(800)),
        how.plain(x, kernel, jnp.ones(800)),
    )
    return jnp.where((experts == others).all(), jnp.abs(found - exact).max(), jnp.inf)


def mixture(
    x_TD,
    weights,
    experts,
    gate: Experts,
    up: Experts,
    down: Experts,
    *,
    norm: RMSNorm | None = None,
    activations: str = quant.DEFAULT_MODE,
):
    """The weighted sum of the chosen experts' SwiGLU -> [T, D] in x's dtype.

    weights, experts: [T, used] of `route`. norm: what x goes through first, or None.

    Where there are kernels, few tokens take two products for all (token, expert) pairs; many, in a
    narrow float type, are brought into the order of their experts and take three. Else few tokens
    take a step a pair, which reads that expert alone, many a step an expert, over all tokens.
    activations: as for `quant.matmul`.
    """
    operands = x_TD, weights, experts, gate, up, down, norm, activations
    return kernels.dispatch_fused(
        {"triton": _mixture_by_kernels}, None, _mixture_one_by_one, *operands
    )


def _mixture_by_kernels(x_TD, weights, experts, gate, up, down, norm, activations):
    (T, used), E = experts.shape, gate.kernel.shape[0]
    of_pairs = _pair_by_pair if T * used <= E else _by_expert
    y_PD = of_pairs(x_TD, norm, experts.reshape(-1), gate, up, down, activations)
    return (weights[..., None] * y_PD.reshape(T, used, -1)).sum(axis=1).astype(x_TD.dtype)


def _mixture_one_by_one(x_TD, weights, experts, gate, up, down, norm, activations):
    """A step a pair, or a step an expert, which is copied out of its stack."""
    (T, used), E = experts.shape, gate.kernel.shape[0]
    x_TD = x_TD if norm is None else norm(x_TD)

    def linear(stack, x, e):
        return stack(x, e, activations) if type(stack) is Experts else stack(x, e)

    def forward(x, e):
        return linear(down, silu_gate(linear(gate, x, e), linear(up, x, e)), e).astype(jnp.float32)

    def pair(sum_TD, i):
        t = i // used
        y_D = forward(jax.lax.dynamic_index_in_dim(x_TD, t, 0), experts.reshape(-1)[i])[0]
        return sum_TD.at[t].add(weights.reshape(-1)[i] * y_D), None

    def expert(sum_TD, e):
        share_T = jnp.where(experts == e, weights, jnp.float32(0)).sum(axis=-1)
        return sum_TD + share_T[:, None] * forward(x_TD, e), None

    step, count = (pair, T * used) if T * used <= E else (expert, E)
    total, _ = jax.lax.scan(step, jnp.zeros(x_TD.shape, jnp.float32), jnp.arange(count))
    return total.astype(x_TD.dtype)


def _pair_by_pair(x_TD, norm, experts_P, gate: Experts, up: Experts, down: Experts, mode: str):
    """P pairs, those of a token one after another -> float32 [P, D].

    NotImplementedError, with the reason, where there are no kernels.
    """
    stacks, target = _for_kernels(gate, up, down, mode)
    scale, epsilon = (None, 0.0) if norm is None else (norm.scale.get_value(), norm.epsilon)
    return kernels.differentiable(
        _Pairs(mode, target, epsilon), x_TD, scale, experts_P.astype(jnp.int32), *stacks
    )


def _by_expert(x_TD, norm, experts_P, gate: Experts, up: Experts, down: Experts, mode: str):
    """As `_pair_by_pair`, for many pairs."""
    if x_TD.dtype.itemsize > 2:
        raise NotImplementedError("the matrix units do not keep float32")
    stacks, target = _for_kernels(gate, up, down, mode)
    x_TD = x_TD if norm is None else norm(x_TD)
    return kernels.differentiable(
        _ByExpert(mode, target), x_TD, experts_P.astype(jnp.int32), *stacks
    )


def _for_kernels(gate, up, down, mode):
    """The stacks and the target of their kernels."""
    if others := [type(stack).__name__ for stack in (gate, up, down) if type(stack) is not Experts]:
        raise NotImplementedError(f"a stack of experts is a {others[0]}")
    stacks = [stack.kernel.get_value() for stack in (gate, up, down)]
    target = kernels.target_of(*stacks, mode=mode)
    if not all(stack.transposed for stack in stacks):
        raise NotImplementedError(
            "a stack is seen as it is stored, the kernel multiplies with its transpose"
        )
    return stacks, target


def _one_expert(x, e, gate, up, down, mode: str):
    """x [..., D] through expert e of the stacks, by plain XLA -> float32 [..., D]."""

    def linear(x, stack):
        return quant.expert_matmul(x, stack, e, activations=mode)

    return linear(silu_gate(linear(x, gate), linear(x, up)), down).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """The kernels as a function of arrays, and the pairs one by one."""

    mode: str
    target: Target
    epsilon: float

    def __call__(self, x_TD, scale_D, experts_P, *stacks):
        how = dict(mode=self.mode, target=self.target)
        gate, up, down = map(kernels.as_weight, stacks)
        (hidden,) = kernels.few_rows(
            x_TD,
            [Product((gate, up), experts=experts_P)],
            dtype=x_TD.dtype,
            norm=scale_D,
            epsilon=self.epsilon,
            **how,
        )
        return kernels.few_rows(
            hidden, [Product((down,), experts=experts_P)], dtype=jnp.float32, **how
        )[0]

    def plain(self, x_TD, scale_D, experts_P, gate, up, down):
        x_TD = x_TD if scale_D is None else rms_norm(x_TD, scale_D, self.epsilon)
        each = jnp.repeat(x_TD, len(experts_P) // len(x_TD), axis=0)
        return jax.lax.map(
            lambda of: _one_expert(*of, gate, up, down, self.mode), (each, experts_P)
        )


@dataclasses.dataclass(frozen=True)
class _ByExpert:
    """Pairs in the order of their experts, each expert's in whole tiles of rows, as a function of
    arrays; and expert by expert.
    """

    mode: str
    target: Target

    def __call__(self, x_TD, experts_P, gate, up, down):
        P, T, E = len(experts_P), len(x_TD), gate.shape[0]
        rows = rows_of_an_expert(P, E, self.target)
        place_P, expert_of_tile = _places(experts_P, E, rows)
        token_P = jnp.arange(P, dtype=jnp.int32) // (P // T)
        token_of_row = jnp.zeros(len(expert_of_tile) * rows, jnp.int32).at[place_P].set(token_P)
        multiply = functools.partial(kernels.many_rows, target=self.target, experts=expert_of_tile)
        x = x_TD[token_of_row]
        hidden = silu_gate(multiply(x, gate), multiply(x, up)).astype(x_TD.dtype)
        return multiply(hidden, down)[place_P]

    def plain(self, x_TD, experts_P, gate, up, down):
        experts_TU = experts_P.reshape(len(x_TD), -1)

        def expert(y_TUD, e):
            y_TD = _one_expert(x_TD, e, gate, up, down, self.mode)
            return jnp.where((experts_TU == e)[..., None], y_TD[:, None], y_TUD), None

        start = jnp.zeros((*experts_TU.shape, x_TD.shape[1]), jnp.float32)
        y_TUD, _ = jax.lax.scan(expert, start, jnp.arange(gate.shape[0]))
        return y_TUD.reshape(len(experts_P), -1)


def _places(experts_P, E: int, rows: int):
    """Rows for pairs such that each tile of `rows` has pairs of one expert -> (int32 [P], the row
    of each; int32 [tiles], the expert of each tile, -1 for those left over).
    """
    P = len(experts_P)
    count_E = jnp.zeros(E, jnp.int32).at[experts_P].add(1)
    order_P = jnp.argsort(experts_P)  # stable: by expert, then as they were
    rank_P = jnp.arange(P, dtype=jnp.int32) - (jnp.cumsum(count_E) - count_E)[experts_P[order_P]]
    tiles_E = (count_E + rows - 1) // rows
    end_E = jnp.cumsum(tiles_E)
    place = (end_E - tiles_E)[experts_P[order_P]] * rows + rank_P
    tile = jnp.arange(
        P // rows + min(E, P), dtype=jnp.int32
    )  # whole tiles, and one that is not of each expert
    expert_of_tile = jnp.searchsorted(end_E, tile, side="right").astype(jnp.int32)
    return jnp.zeros(P, jnp.int32).at[order_P].set(place), jnp.where(
        expert_of_tile < E, expert_of_tile, -1
    )
