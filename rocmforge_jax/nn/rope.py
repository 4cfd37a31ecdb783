"""Rotary position embeddings (Su et al., 2021, arXiv:2104.09864), exact at any position.

position * frequency in float32 is off by 1e-2 radians at position 100,000. Here a frequency is a
fixed-point fraction of a full turn in 32 bits, so position * frequency wraps around as the angle
does: the error is at most 2**-33 turns per position.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Which elements of a head rotate, and how fast.

    width: rotated elements per head (the first ones; even, at most the head width). base: frequency
    i is base**(-2i/width) radians per position. interleaved: pairs are (0,1), (2,3), ... (ggml's
    "norm"), else (0, width/2), (1, width/2 + 1), ... ("neox"). scale: positions are divided by it
    (linear context extension). factors: divisors of each frequency, [width/2] (`rope_freqs.weight`:
    the long-context factors of Llama 3), or None.
    """

    width: int
    base: float = 10000.0
    interleaved: bool = False
    scale: float = 1.0
    factors: tuple[float, ...] | None = None

    def __post_init__(self):
        if self.width < 2 or self.width % 2:
            raise ValueError(f"rope width must be even and at least 2, got {self.width}")
        if not (
            np.isfinite(self.base) and self.base > 0 and np.isfinite(self.scale) and self.scale > 0
        ):
            raise ValueError(
                f"rope base and scale must be positive and finite, got {self.base} and {self.scale}"
            )
        if self.factors is not None and len(self.factors) != self.width // 2:
            raise ValueError(
                f"rope of width {self.width} takes {self.width // 2} factors, got"
                f" {len(self.factors)}"
            )
        if self.factors is not None and not all(np.isfinite(f) and f > 0 for f in self.factors):
            raise ValueError(f"rope factors must be positive and finite, got {self.factors}")

    def turns(self) -> np.ndarray:
        """Returns the frequencies in units of 2**-32 turns per position, uint32 [width/2]."""
        radians = (
            self.base ** (-np.arange(0, self.width, 2, dtype=np.float64) / self.width) / self.scale
        )
        if self.factors is not None:
            radians = radians / np.asarray(self.factors, np.float64)
        return (np.round(radians / (2 * np.pi) * 2.0**32).astype(np.uint64) % 2**32).astype(
            np.uint32
        )


def rope_table(positions_BT, config: RopeConfig):
    """Returns (cos, sin) of integer positions, float32 [B, T, width/2], once for all layers."""
    phase = positions_BT.astype(jnp.uint32)[..., None] * config.turns()[None, None]
    radians = phase.astype(jnp.int32).astype(jnp.float32) * jnp.float32(2 * np.pi / 2**32)
    return jnp.cos(radians), jnp.sin(radians)


def apply_rope(x_BTNH, table, config: RopeConfig):
    """Rotates the first config.width elements of each head of x [B, T, heads, H].

    The other elements stay. The result has x's dtype.
    """
    if x_BTNH.shape[-1] < config.width:
        raise ValueError(
            f"rope rotates {config.width} elements of a head, the head has {x_BTNH.shape[-1]}"
        )
    cos, sin = (part[:, :, None] for part in table)
    rotated, rest = x_BTNH[..., : config.width].astype(jnp.float32), x_BTNH[..., config.width :]
    if config.interleaved:
        pairs = rotated.reshape(*rotated.shape[:-1], -1, 2)
        first, second = pairs[..., 0], pairs[..., 1]
        turned = jnp.stack(
            [first * cos - second * sin, second * cos + first * sin], axis=-1
        ).reshape(rotated.shape)
    else:
        first, second = jnp.split(rotated, 2, axis=-1)
        turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([turned.astype(x_BTNH.dtype), rest], axis=-1)
