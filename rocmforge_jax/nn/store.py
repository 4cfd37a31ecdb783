"""New tokens enter the cache: queries and keys are rotated, keys and values written."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from pallas_kernels.attention.store import rotate_and_store as _kernel
from pallas_kernels.targets import Target
from rocmforge_jax.nn.cache import LayerCache
from rocmforge_jax.nn.rope import RopeConfig, apply_rope
from rocmforge_jax.quant import kernels


def rotate_and_store(
    q_BTNH, k_BTKH, v_BTKH, table, config: RopeConfig, cache: LayerCache, starts_B, *, implementation: str | None = None
) -> tuple[jax.Array, LayerCache]:
    """-> (q_BTNH rotated, the cache with T tokens more from slot starts_B[b] on). table: `rope_table` of their positions.

    implementation: None, "triton" (one token of each sequence) or "xla", as for `quant.matmul`. Differentiable.
    """
    if implementation is None and q_BTNH.shape[1] > 1:
        # The launches that one kernel would save are those of a single token.
        return _in_plain_xla(q_BTNH, k_BTKH, v_BTKH, table, config, cache, starts_B)
    implementations = {"triton": _in_one_launch, "xla": _in_plain_xla}
    return kernels.dispatch(implementations, implementation, q_BTNH, k_BTKH, v_BTKH, table, config, cache, starts_B)


def _in_plain_xla(q_BTNH, k_BTKH, v_BTKH, table, config, cache, starts_B):
    q_BTNH, k_BTKH = (apply_rope(heads, table, config) for heads in (q_BTNH, k_BTKH))
    return q_BTNH, cache.write(k_BTKH, v_BTKH, starts_B)


def _in_one_launch(q_BTNH, k_BTKH, v_BTKH, table, config, cache, starts_B):
    target = kernels.current_target()
    if q_BTNH.shape[1] > 1:
        raise NotImplementedError(f"{q_BTNH.shape[1]} tokens, the kernel takes one")
    if q_BTNH.shape[-1] < config.width:
        raise ValueError(f"rope rotates {config.width} elements of a head, the head has {q_BTNH.shape[-1]}")
    what = f"the kernel that rotates and stores heads of {q_BTNH.shape[-1]}, {cache.keys.dtype}"
    kernels.require_working(what, target, functools.partial(_error, config, q_BTNH.shape[-1], cache.keys.dtype, target), 1e-2)
    return kernels.differentiable(_Stored(config, target), q_BTNH, k_BTKH, v_BTKH, table, cache, starts_B)


@dataclasses.dataclass(frozen=True)
class _Stored:
    """The kernel as a function, and plain XLA's."""

    config: RopeConfig
    target: Target

    def __call__(self, *operands):
        return _run(self.config.interleaved, self.target, *operands)

    def plain(self, q_BTNH, k_BTKH, v_BTKH, table, cache, starts_B):
        return _in_plain_xla(q_BTNH, k_BTKH, v_BTKH, table, self.config, cache, starts_B)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(interleaved, target, q_BTNH, k_BTKH, v_BTKH, table, cache, starts_B):
    operands = (a[:, 0] for a in (q_BTNH, k_BTKH, v_BTKH, *table))
    q_BNH, keys, values = _kernel(*operands, cache.keys, cache.values, starts_B, interleaved=interleaved, target=target)
    return q_BNH[:, None], LayerCache(keys, values)


def _error(config, width, dtype, target):
    """Largest relative error of the kernel on a small random cache."""
    normal = lambda i, *shape: jax.random.normal(jax.random.key(i), shape, dtype)
    q, k, v = normal(0, 2, 1, 6, width), normal(1, 2, 1, 2, width), normal(2, 2, 1, 2, width)
    cache = LayerCache(normal(3, 2, 2, width, 20), normal(4, 2, 2, 20, width))
    angles = jax.random.uniform(jax.random.key(5), (2, 1, config.width // 2), jnp.float32, -3, 3)
    operands = q, k, v, (jnp.cos(angles), jnp.sin(angles))
    starts = jnp.array([3, 19], jnp.int32)
    found = _run(config.interleaved, target, *operands, cache, starts)
    exact = _in_plain_xla(*operands, config, cache, starts)
    norm = lambda a: jnp.linalg.norm(a.astype(jnp.float32))
    return max(float(norm(a - b) / norm(b)) for a, b in zip(*map(jax.tree.leaves, (found, exact))))
