"""Several products of one input, with what comes before and after them: one or two launches where
there are kernels, one call of C++.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.qmatmul import Activations, api
from pallas_kernels.targets import Target
from rocmforge_jax import quant
from rocmforge_jax.nn.mlp import silu_gate
from rocmforge_jax.nn.norm import rms_norm
from rocmforge_jax.nn.prepared import Prepared
from rocmforge_jax.quant import kernels, native
from rocmforge_jax.quant.qtensor import value_of


class Product(NamedTuple):
    """One output: x @ weight, or silu(x @ weight) * (x @ up) where there is an `up`.

    Then + bias (out,), then + residual [..., out].

    weight, up: (in, out), arrays or quantised.
    """

    weight: object
    up: object = None
    bias: object = None
    residual: jax.Array | None = None


def products(
    x: jax.Array | Prepared,
    wanted: Sequence[Product],
    *,
    norm=None,
    dtype=None,
    activations: str = quant.DEFAULT_MODE,
    implementation: str | None = None,
) -> list[jax.Array]:
    """The outputs [..., out] of one x [..., in], in `dtype` (default x's).

    norm: an RMSNorm that x goes through first, or None.

    activations, implementation: as for `quant.matmul`. Differentiable in everything but quantised
    weights.
    """
    x = x if isinstance(x, Prepared) else Prepared(x)
    wanted = [Product(*map(value_of, product)) for product in wanted]
    dtype = jnp.dtype(dtype or x.array.dtype)

    def each_as_it_can(x, wanted, norm, dtype, activations):  # many rows, say
        return _one_by_one(x.array, wanted, *_scale_of(norm), dtype, activations, implementation)

    return kernels.dispatch_fused(
        _FUSED, implementation, each_as_it_can, x, wanted, norm, dtype, activations
    )


def _scale_of(norm):
    return (None, 0.0) if norm is None else (norm.scale.get_value(), norm.epsilon)


def _one_by_one(x, wanted, scale, epsilon, dtype, activations, implementation):
    x = x if scale is None else rms_norm(x, scale, epsilon)
    multiply = functools.partial(
        quant.matmul, x, dtype=dtype, activations=activations, implementation=implementation
    )

    def one(product):
        y = multiply(product.weight)
        y = y if product.up is None else silu_gate(y, multiply(product.up))
        y = y if product.bias is None else y + product.bias.astype(y.dtype)[(None,) * (y.ndim - 1)]
        return (
            y if product.residual is None else product.residual + y.astype(product.residual.dtype)
        )

    return list(map(one, wanted))


def _fused(x, wanted, norm, dtype, mode):
    """The same in kernels. NotImplementedError, with the reason, for what they cannot do."""
    target = kernels.target_of(*_weights(wanted), mode=mode)
    if not all(weight.transposed for weight in _weights(wanted)):
        raise NotImplementedError(
            "a weight is seen as it is stored, the kernel multiplies with its transpose"
        )
    if (
        not 0
        < (rows := math.prod(x.array.shape[:-1]))
        <= (most := kernels.few_rows_limit(x.array.dtype))
    ):
        raise NotImplementedError(f"{rows} rows, the kernel takes 1 to {most}")
    return _in_rows(_Fused, target, x, wanted, norm, dtype, mode)


def _native(x, wanted, norm, dtype, mode):
    """The same in one call of C++, any number of rows."""
    native.require(*_weights(wanted), mode=mode, rows=math.prod(x.array.shape[:-1]))
    return _in_rows(_Native, None, x, wanted, norm, dtype, mode)


_FUSED = {"triton": _fused, "native": _native}


def _weights(wanted):
    return [
        weight
        for product in wanted
        for weight in (product.weight, product.up)
        if weight is not None
    ]


def _in_rows(kind, target, x, wanted, norm, dtype, mode):
    """A kernel that takes matrices."""

    def flat(a):
        return None if a is None else a.reshape(-1, a.shape[-1])

    scale, epsilon = _scale_of(norm)
    jobs = [product._replace(residual=flat(product.residual)) for product in wanted]
    ready = x.for_products(mode) if norm is None else None
    outputs = kernels.differentiable(
        kind(epsilon, dtype, mode, target), flat(x.array), ready, scale, jobs
    )
    return [y.reshape(*x.array.shape[:-1], -1) for y in outputs]


@dataclasses.dataclass(frozen=True)
class _Fused:
    """The kernels as a function of arrays, and the products one by one."""

    epsilon: float
    dtype: jnp.dtype
    mode: str
    target: Target | None

    def __call__(self, x, ready: Activations | None, scale, wanted):
        how = dict(mode=self.mode, dtype=self.dtype, target=self.target)
        x, norm = (x, dict(norm=scale, epsilon=self.epsilon)) if ready is None else (ready, {})
        return kernels.few_rows(x, list(map(_job, wanted)), **how, **norm)

    def plain(self, x, ready, scale, wanted):
        return _one_by_one(x, wanted, scale, self.epsilon, self.dtype, self.mode, None)


class _Native(_Fused):
    """The products in C++ likewise."""

    def __call__(self, x, _, scale, wanted):
        return native.multiply(
            x,
            list(map(_job, wanted)),
            mode=self.mode,
            dtype=self.dtype,
            norm=scale,
            epsilon=self.epsilon,
        )

    def plain(self, x, _, scale, wanted):
        return _one_by_one(x, wanted, scale, self.epsilon, self.dtype, self.mode, "xla")


def _job(product):
    weights = [weight for weight in (product.weight, product.up) if weight is not None]
    return api.Product(tuple(map(kernels.as_weight, weights)), product.bias, product.residual)
