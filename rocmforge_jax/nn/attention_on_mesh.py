"""Attention of a model that several devices share: each computes its sequences and its heads.

Left to itself, XLA would gather the cache for what it does not know how to split.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from pallas_kernels.attention import AttentionRule
from rocmforge_jax.backends.on_mesh import MODEL_AXIS, batch_axis, mesh_here, model_parts, on_mesh


def on_each_device(
    function: Callable,
    mesh: Mesh,
    kv_heads: int,
    rule: AttentionRule,
    heads: tuple,
    cache: Any,
    by_batch: Any,
    whole: Any,
) -> tuple[jax.Array, Any]:
    """Computes function(heads, cache, by_batch, whole, rule) for the heads of each device.

    KV heads that do not split over the mesh are computed by every device, and so are heads under
    ALiBi, whose slopes count all heads.

    Args:
        function: Returns attention, [B, T, N, H] or [B, T, N * H], and the cache.
        mesh: The devices.
        kv_heads: KV heads of all devices, K.
        rule: The rule of attention.
        heads: Queries [B, T, N, H], and keys and values [B, T, K, H] if there are new ones.
        cache: A KVState, or None.
        by_batch: Arrays whose first axis is the batch, or 1, in a pytree.
        whole: Arrays that every device needs, in a pytree.

    Returns:
        What `function` returns.
    """
    split = kv_heads % model_parts(mesh) == 0 and rule.alibi is None
    of_heads = MODEL_AXIS if split and MODEL_AXIS in mesh.shape else None
    B = heads[0].shape[0]
    batch = batch_axis(mesh, B)

    def of_batch(array):
        return PartitionSpec(batch if array.shape[0] == B else None)

    def compute(*operands):
        with on_mesh(None):
            return function(*operands)

    of_cache = PartitionSpec(batch, of_heads)
    return jax.shard_map(
        compute,
        mesh=mesh_here(mesh),
        in_specs=(
            PartitionSpec(batch, None, of_heads),
            of_cache,
            jax.tree.map(of_batch, by_batch),
            PartitionSpec(),
            PartitionSpec(of_heads),
        ),
        out_specs=(PartitionSpec(batch, None, of_heads), of_cache),
        check_vma=False,
    )(heads, cache, by_batch, whole, rule)
