"""A mixture of experts: each token goes through the few experts that a router chooses for it."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.qmatmul.api import Next, Product
from pallas_kernels.qmatmul.activations import Activations
from pallas_kernels.targets import Target
from rocmforge_jax import quant
from rocmforge_jax.nn.fresh import normal
from rocmforge_jax.nn.mlp import silu_gate
from rocmforge_jax.nn.prepared import Prepared, array_of
from rocmforge_jax.quant import kernels


class Experts(nnx.Module):
    """The same linear layer of every expert. kernel: (E, in, out), an nnx.Param or a QParam."""

    def __init__(self, experts: int, in_features: int, out_features: int, *, dtype=jnp.float32, rngs: nnx.Rngs | None):
        shape = (experts, in_features, out_features)
        self.kernel = nnx.Param(normal(rngs, shape, in_features**-0.5, dtype))

    def __call__(self, x, expert, activations: str = quant.DEFAULT_MODE):
        """x [..., in] through one expert, an integer scalar -> [..., out]. activations: as for `quant.matmul`."""
        return quant.expert_matmul(x, self.kernel, expert, activations=activations)


class ScalarGate(nnx.Module):
    """sigmoid(x @ kernel), one number a token: how much of a shared expert it takes. kernel: (in,)."""

    def __init__(self, in_features: int, *, dtype=jnp.float32, rngs: nnx.Rngs | None):
        self.kernel = nnx.Param(normal(rngs, (in_features,), in_features**-0.5, dtype))

    def __call__(self, x):
        """[..., in] -> [..., 1] in x's dtype."""
        return jax.nn.sigmoid(quant.matmul(x, self.kernel.get_value()[:, None], dtype=jnp.float32)).astype(x.dtype)


def route(logits_TE, used: int, *, renormalize: bool):
    """Softmax over all experts, then the `used` likeliest of each token: (weights float32, ids int32), both [T, used].

    renormalize: the chosen weights are scaled to sum to 1.
    """
    weights, experts = jax.lax.top_k(jax.nn.softmax(logits_TE.astype(jnp.float32), axis=-1), used)
    return weights / weights.sum(axis=-1, keepdims=True) if renormalize else weights, experts


def mixture(x, weights, experts, gate: Experts, up: Experts, down: Experts, *, activations: str = quant.DEFAULT_MODE):
    """The weighted sum of the chosen experts' SwiGLU -> [T, D] in x's dtype. x: [T, D] or Prepared; weights, experts: [T, used] of `route`.

    Few tokens: all (token, expert) pairs in two launches where there are kernels, else one step a pair, which reads that expert alone.
    Many: one step an expert, over all tokens. activations: as for `quant.matmul`.
    """
    (T, used), E, x_TD = experts.shape, gate.kernel.shape[0], array_of(x)
    if T * used <= E and kernels.order()[0] == "triton" and all(type(stack) is Experts for stack in (gate, up, down)):
        try:
            y_PD = _in_two_launches(x, experts.reshape(-1), gate, up, down, activations)
            return (weights[..., None] * y_PD.reshape(T, used, -1)).sum(axis=1).astype(x_TD.dtype)
        except NotImplementedError:  # stacks that no kernel can address, say: each expert is copied out of them
            pass
    linear = lambda stack, x, e: stack(x, e, activations) if type(stack) is Experts else stack(x, e)
    forward = lambda x, e: linear(down, silu_gate(linear(gate, x, e), linear(up, x, e)), e).astype(jnp.float32)

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


def _in_two_launches(x, experts_P, gate: Experts, up: Experts, down: Experts, mode: str):
    """P pairs, those of a token one after another -> float32 [P, D]. NotImplementedError, with the reason, where there are no kernels."""
    stacks = [stack.kernel.get_value() for stack in (gate, up, down)]
    target = kernels.target_of(*stacks, mode=mode)
    if not all(stack.transposed for stack in stacks):
        raise NotImplementedError("a stack is seen as it is stored, the kernel multiplies with its transpose")
    ready = x.for_products(None, mode) if isinstance(x, Prepared) else None
    return kernels.differentiable(_Pairs(mode, target), array_of(x), ready, experts_P.astype(jnp.int32), *stacks)


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """The kernels as a function of arrays, and the pairs one by one."""

    mode: str
    target: Target

    def __call__(self, x_TD, ready: Activations | None, experts_P, *stacks):
        how = dict(mode=self.mode, target=self.target)
        gate, up, down = map(kernels.as_weight, stacks)
        hidden = Product((gate, up), next=Next(), experts=experts_P)
        ((_, hidden),) = kernels.few_rows(x_TD if ready is None else ready, [hidden], dtype=x_TD.dtype, **how)
        return kernels.few_rows(hidden, [Product((down,), experts=experts_P)], dtype=jnp.float32, **how)[0]

    def plain(self, x_TD, ready, experts_P, gate, up, down):
        def pair(x_D, e):
            one = lambda x, stack: quant.expert_matmul(x, stack, e, activations=self.mode)
            return one(silu_gate(one(x_D, gate), one(x_D, up)), down).astype(jnp.float32)

        each = jnp.repeat(x_TD, len(experts_P) // len(x_TD), axis=0)
        return jax.lax.map(lambda of: pair(*of), (each, experts_P))
