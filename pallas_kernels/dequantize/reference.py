"""Dequantisation in plain jnp: the reference for the kernel, and its fallback."""

import jax.numpy as jnp
import numpy as np

from pallas_kernels.packing import GROUP, Packing, unpack_codes, values


def dequantize(planes, packing: Packing, dtype=jnp.float32):
    """Dequantise planes to values [..., N, K], computed in float32 and rounded to `dtype`."""
    halves = packing.halves
    codes = signed_codes(unpack_codes(planes["codes"], packing.bits), packing)
    *lead, groups, _ = codes.shape

    def get(name):  # [..., G, h or 1, 1], to broadcast with codes [..., G, h, 32 / h]
        if name == "d":
            return jnp.repeat(planes[name], packing.span, axis=-1)[..., None, None]
        return jnp.moveaxis(planes[name], -2, -1)[..., None]

    out = values(packing, codes.reshape(*lead, groups, halves, GROUP // halves), get)
    return out.reshape(*lead, groups * GROUP).astype(dtype)


def signed_codes(codes, packing: Packing):
    """Apply the table and the offset to codes: uint8 -> int8."""
    if packing.table is not None:
        codes = (
            jnp.asarray(np.array(packing.table, np.int8)).at[codes].get(mode="promise_in_bounds")
        )
        return codes - jnp.int8(packing.offset)
    # Extend the sign by hand: XLA:CPU of JAX 0.12 loses it when it fuses the conversion from uint8
    # to int8 with a reduction.
    wide = (codes.astype(jnp.int32) ^ 128) - 128
    return (wide - packing.offset).astype(jnp.int8)
