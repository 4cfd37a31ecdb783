"""New tokens enter the cache: queries and keys are rotated, keys and values written."""

import dataclasses

import jax

from rocmforge_jax.cpp import attention as native_attention
from rocmforge_jax.nn.cache import LayerCache
from rocmforge_jax.nn.rope import RopeConfig, apply_rope
from rocmforge_jax.quant import kernels, native


def rotate_and_store(
    q_BTNH,
    k_BTKH,
    v_BTKH,
    table,
    config: RopeConfig,
    cache: LayerCache,
    starts_B,
    *,
    implementation: str | None = None,
) -> tuple[jax.Array, LayerCache]:
    """-> (q_BTNH rotated, the cache with T tokens more from slot starts_B[b] on).

    table: `rope_table` of their positions.

    implementation: None, "native" (C++, on CPUs) or "xla", as for `quant.matmul`. Differentiable.
    """
    implementations = {"native": _in_place, "xla": _in_plain_xla}
    return kernels.dispatch(
        implementations, implementation, q_BTNH, k_BTKH, v_BTKH, table, config, cache, starts_B
    )


def _in_plain_xla(q_BTNH, k_BTKH, v_BTKH, table, config, cache, starts_B):
    q_BTNH, k_BTKH = (apply_rope(heads, table, config) for heads in (q_BTNH, k_BTKH))
    return q_BTNH, cache.write(k_BTKH, v_BTKH, starts_B)


def _in_place(q_BTNH, k_BTKH, v_BTKH, table, config, cache, starts_B):
    native.require_float32(q_BTNH, k_BTKH, v_BTKH, cache.keys)
    if q_BTNH.shape[-1] < config.width:
        raise ValueError(
            f"rope rotates {config.width} elements of a head, the head has {q_BTNH.shape[-1]}"
        )
    return kernels.differentiable(_Native(config), q_BTNH, k_BTKH, v_BTKH, table, cache, starts_B)


@dataclasses.dataclass(frozen=True)
class _Native:
    """The function in C++, and plain XLA's."""

    config: RopeConfig

    def __call__(self, q_BTNH, k_BTKH, v_BTKH, table, cache, starts_B):
        operands = (*table, cache.keys, cache.values, starts_B)
        q_BTNH, *kept = native_attention.rotate_and_store(
            q_BTNH, k_BTKH, v_BTKH, *operands, interleaved=self.config.interleaved
        )
        return q_BTNH, LayerCache(*kept)

    def plain(self, q_BTNH, k_BTKH, v_BTKH, table, cache, starts_B):
        return _in_plain_xla(q_BTNH, k_BTKH, v_BTKH, table, self.config, cache, starts_B)
