"""A temperature that sharpens attention at later positions."""

import dataclasses

import jax.numpy as jnp

from rocmforge_jax.nn import attention_temperature


@dataclasses.dataclass(frozen=True)
class Temperature:
    """Sharpens attention at later positions; `nn.attention_temperature` documents the fields."""

    scale: float
    floor_scale: int
    offset: int = 0

    def sharpen(self, q_BTNH, positions_BT):
        """Multiplies queries by the factors of their positions, in float32; keeps their dtype."""
        factor_BT = attention_temperature(positions_BT, *dataclasses.astuple(self))
        return (q_BTNH.astype(jnp.float32) * factor_BT[..., None, None]).astype(q_BTNH.dtype)
