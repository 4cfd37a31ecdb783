"""Values of packed planes in plain jnp: the truth for the kernel, and its stand-in."""

import jax.numpy as jnp
import numpy as np

from pallas_kernels.packing import GROUP, Packing, unpack_codes, values


def dequantize(planes, packing: Packing, dtype=jnp.float32):
    """Planes of [..., N, K] -> its values in `dtype`.

    The float32 ones are exact, others their rounding.
    """
    halves = packing.halves
    codes = signed_codes(unpack_codes(planes["codes"], packing.bits), packing)
    *lead, groups, _ = codes.shape

    def get(name):  # [..., G or 1, h, 1], to go with codes [..., G, h, 32 / h]
        if name == "d":
            return jnp.repeat(planes[name], packing.span, axis=-1)[..., None, None]
        return jnp.moveaxis(planes[name], -2, -1)[..., None]

    out = values(packing, codes.reshape(*lead, groups, halves, GROUP // halves), get)
    return out.reshape(*lead, groups * GROUP).astype(dtype)


def signed_codes(codes, packing: Packing):
    """uint8 codes -> int8, table and offset applied."""
    if packing.table is not None:
        codes = (
            jnp.asarray(np.array(packing.table, np.int8)).at[codes].get(mode="promise_in_bounds")
        )
        return codes - jnp.int8(packing.offset)
    # The sign of a byte is extended by hand: XLA:CPU of JAX 0.12 loses it from uint8 to int8 where
    # it fuses this with a reduction.
    wide = (codes.astype(jnp.int32) ^ 128) - 128
    return (wide - packing.offset).astype(jnp.int8)
