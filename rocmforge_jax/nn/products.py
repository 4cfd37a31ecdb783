"""Several products of one input, with what comes before and after them: two launches where there are kernels, one call of C++."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.targets import Target
from rocmforge_jax import quant
from rocmforge_jax.nn.mlp import silu_gate
from rocmforge_jax.nn.norm import rms_norm
from rocmforge_jax.quant import kernels, native
from rocmforge_jax.quant.qtensor import value_of


class Product(NamedTuple):
    """One output: x @ weight, or silu(x @ weight) * (x @ up) where there is an `up`; then + bias (out,), then + residual [..., out].

    weight, up: (in, out), arrays or quantised.
    """

    weight: object
    up: object = None
    bias: object = None
    residual: jax.Array | None = None


def products(
    x,
    wanted: Sequence[Product],
    *,
    norm=None,
    dtype=None,
    activations: str = quant.DEFAULT_MODE,
    implementation: str | None = None,
) -> list[jax.Array]:
    """The outputs [..., out] of one x [..., in], in `dtype` (default x's). norm: an RMSNorm that x goes through first, or None.

    activations, implementation: as for `quant.matmul`. Differentiable in everything but quantised weights.
    """
    wanted = [Product(*map(value_of, product)) for product in wanted]
    normed_by = (None, 0.0) if norm is None else (norm.scale.get_value(), norm.epsilon)
    dtype = jnp.dtype(dtype or x.dtype)
    for each in kernels.order() if implementation is None else (implementation,):
        try:
            if each in _FUSED:
                return _FUSED[each](x, wanted, *normed_by, dtype, activations)
        except NotImplementedError:  # many rows, say: product by product, each as it can
            pass
    return _one_by_one(x, wanted, *normed_by, dtype, activations, implementation)


def _one_by_one(x, wanted, scale, epsilon, dtype, activations, implementation):
    x = x if scale is None else rms_norm(x, scale, epsilon)
    multiply = functools.partial(quant.matmul, x, dtype=dtype, activations=activations, implementation=implementation)

    def one(product):
        y = multiply(product.weight)
        y = y if product.up is None else silu_gate(y, multiply(product.up))
        y = y if product.bias is None else y + product.bias.astype(y.dtype)[(None,) * (y.ndim - 1)]
        return y if product.residual is None else product.residual + y.astype(product.residual.dtype)

    return list(map(one, wanted))


def _fused(x, wanted, scale, epsilon, dtype, mode):
    """The same in kernels. NotImplementedError, with the reason, for what they cannot do."""
    weights = [weight for product in wanted for weight in (product.weight, product.up) if weight is not None]
    target = kernels.target_of(*weights, mode=mode)
    if not all(weight.transposed for weight in weights):
        raise NotImplementedError("a weight is seen as it is stored, the kernel multiplies with its transpose")
    if not 0 < (rows := math.prod(x.shape[:-1])) <= (most := kernels.few_rows_limit(x.dtype)):
        raise NotImplementedError(f"{rows} rows, the kernel takes 1 to {most}")
    return _in_rows(_Fused(epsilon, dtype, mode, target), x, scale, wanted)


def _native(x, wanted, scale, epsilon, dtype, mode):
    """The same in one call of C++, any number of rows."""
    weights = [weight for product in wanted for weight in (product.weight, product.up) if weight is not None]
    native.require(*weights, mode=mode, rows=math.prod(x.shape[:-1]))
    return _in_rows(_Native(epsilon, dtype, mode), x, scale, wanted)


_FUSED = {"triton": _fused, "native": _native}


def _in_rows(kernel, x, scale, wanted):
    """A kernel that takes matrices."""
    flat = lambda a: None if a is None else a.reshape(-1, a.shape[-1])
    wanted = [product._replace(residual=flat(product.residual)) for product in wanted]
    outputs = kernels.differentiable(kernel, flat(x), scale, wanted)
    return [output.reshape(*x.shape[:-1], -1) for output in outputs]


@dataclasses.dataclass(frozen=True)
class _Fused:
    """The kernels as a function of arrays, and the products one by one."""

    epsilon: float
    dtype: jnp.dtype
    mode: str
    target: Target | None = None

    def __call__(self, x, scale, wanted):
        jobs = list(map(_job, wanted))
        return list(kernels.few_rows(x, jobs, mode=self.mode, dtype=self.dtype, target=self.target, norm=scale, epsilon=self.epsilon))

    def plain(self, x, scale, wanted):
        return _one_by_one(x, wanted, scale, self.epsilon, self.dtype, self.mode, None)


class _Native(_Fused):
    """The products in C++ likewise."""

    def __call__(self, x, scale, wanted):
        return native.multiply(x, list(map(_job, wanted)), mode=self.mode, dtype=self.dtype, norm=scale, epsilon=self.epsilon)

    def plain(self, x, scale, wanted):
        return _one_by_one(x, wanted, scale, self.epsilon, self.dtype, self.mode, "xla")


def _job(product):
    weights = [weight for weight in (product.weight, product.up) if weight is not None]
    return kernels.Product(tuple(map(kernels.as_weight, weights)), product.bias, product.residual)
