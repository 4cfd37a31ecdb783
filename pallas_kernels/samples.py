"""Random packed matrices for kernel trials, tests and benchmarks.

Codes cover all bit patterns; scales have realistic magnitudes.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.packing import Packing


def random_planes(key, packing: Packing, rows: int, groups: int) -> dict[str, jax.Array]:
    """Generate the planes of a matrix with `rows` rows of `groups` groups. Traceable."""
    shapes = {
        "codes": (rows, packing.bits, groups),
        "d": (rows, groups // packing.span),
        "scale": (rows, packing.halves, groups),
    }
    return {
        name: _random(jax.random.fold_in(key, i), packing, name, shapes[name])
        for i, name in enumerate(packing.planes())
    }


def _random(key, packing, name, shape):
    def small(key):
        return jax.random.uniform(key, shape, jnp.float16, 0.5e-3, 1.5e-3)

    def below(high, dtype):
        return jax.random.randint(key, shape, 0, high).astype(dtype)

    if name == "codes":
        return jax.random.bits(key, shape, jnp.uint32)
    if name == "d" and packing.minimum:
        return jax.lax.bitcast_convert_type(
            jnp.stack([small(k) for k in jax.random.split(key)], axis=-1), jnp.uint32
        )
    if name == "d":
        return small(key)
    match packing.scale:
        case "bytes":
            return below(64, jnp.uint16) | (below(64, jnp.uint16) << 8)
        case "int8":
            return below(64, jnp.int8) - jnp.int8(32)
        case "e8m0":
            return below(8, jnp.uint8) + jnp.uint8(116)
        case "e4m3":
            return below(126, jnp.uint8)
        case "nibbles":
            return jax.random.bits(key, shape, jnp.uint8)
