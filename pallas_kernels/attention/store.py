"""One new token of each sequence goes into the cache: its query and key are rotated, its key and value written, in one launch."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from pallas_kernels import triton
from pallas_kernels.attention import checks
from pallas_kernels.attention.slots import within
from pallas_kernels.targets import Target


def rotate_and_store(q_BNH, k_BKH, v_BKH, cos_BR, sin_BR, keys_BKHS, values_BKSH, slots_B, *, interleaved: bool, target: Target):
    """-> (q_BNH, keys_BKHS, values_BKSH): queries rotated, the caches with the keys, rotated, and the values at slots_B[b].

    cos_BR, sin_BR: float32, of the angles of the R pairs that rotate: elements 2i and 2i + 1 of a head where `interleaved`, else i and
    R + i; elements from 2R on stay. The caches are written in place where they are donated. A slot outside the cache is not written.
    """
    (B, N, H), K, R = q_BNH.shape, k_BKH.shape[1], cos_BR.shape[-1]
    checks.require_kernels(target, q_BNH, keys_BKHS, values_BKSH)
    pairs, rest = pl.next_power_of_2(R), pl.next_power_of_2(max(H - 2 * R, 1))

    def kernel(q_ref, k_ref, v_ref, cos_ref, sin_ref, slots_ref, _keys, _values, q_out, keys_out, values_out):
        b, head = pl.program_id(0), pl.program_id(1)
        slot = slots_ref[b]
        pair, behind = jnp.arange(pairs, dtype=jnp.int32), 2 * R + jnp.arange(rest, dtype=jnp.int32)
        first, second = (2 * pair, 2 * pair + 1) if interleaved else (pair, R + pair)
        exists = within((pair, R if R < pairs else None))

        def rotated(ref, row):
            a, b_ = (triton.load(ref, (b, row, at), mask=exists).astype(jnp.float32) for at in (first, second))
            cos, sin = (triton.load(ref, (b, pair), mask=exists) for ref in (cos_ref, sin_ref))
            yield from ((first, a * cos - b_ * sin, exists), (second, b_ * cos + a * sin, exists))
            if 2 * R < H:
                yield behind, triton.load(ref, (b, row, behind), mask=behind < H).astype(jnp.float32), behind < H

        @pl.when(head < N)
        def _():
            for at, value, mask in rotated(q_ref, head):
                triton.store(q_out, (b, head, at), value.astype(q_out.dtype), mask=mask)

        inside = (slot >= 0) & (slot < values_out.shape[2])

        @pl.when((head >= N) & inside)
        def _():
            kv = head - N
            for at, value, mask in rotated(k_ref, kv):
                triton.store(keys_out, (b, kv, at, slot), value.astype(keys_out.dtype), mask=mask)
            column = jnp.arange(pl.next_power_of_2(H), dtype=jnp.int32)
            mask = within((column, H if H < column.size else None))
            value = triton.load(v_ref, (b, kv, column), mask=mask)
            triton.store(values_out, (b, kv, slot, column), value.astype(values_out.dtype), mask=mask)

    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (q_BNH, keys_BKHS, values_BKSH)]
    angles = (a.astype(np.float32) for a in (cos_BR, sin_BR))
    return triton.call(
        kernel, shapes, grid=(B, N + K), target=target, warps=max(1, 64 // target.wave), name="rotate_and_store", aliases={6: 1, 7: 2}
    )(q_BNH, k_BKH, v_BKH, *angles, slots_B.astype(jnp.int32), keys_BKHS, values_BKSH)
