"""Rotary position embeddings (Su et al., 2021, arXiv:2104.09864), exact at any position.

In float32, position * frequency has an error of 1e-2 radians at position 100,000. Here a frequency
is a 32-bit fixed-point fraction of a full turn. The product position * frequency then wraps around
exactly like the angle, with an error of at most 2**-33 turns per position.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

#: The supported values of `rope.scaling.type`.
KINDS = ("none", "linear", "yarn", "longrope")


@dataclasses.dataclass(frozen=True)
class Yarn:
    """Which frequencies YaRN slows down (Peng et al., 2023, arXiv:2309.00071).

    A pair that makes more than `beta_fast` turns in the original context keeps its frequency. The
    frequency of a pair that makes fewer than `beta_slow` turns is divided by `RopeConfig.scale`.
    In between, the two frequencies are mixed linearly by the index of the pair. As in llama.cpp,
    the ends of this slope are rounded outwards to whole pairs.

    Attributes:
        original_context: The context length of the original training.
        beta_fast: Turns in the original context, at least beta_slow.
        beta_slow: Turns in the original context, positive.
    """

    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def __post_init__(self):
        if self.original_context < 1:
            raise ValueError(
                f"the original context of YaRN must be positive, got {self.original_context}"
            )
        if not 0 < self.beta_slow <= self.beta_fast < math.inf:
            raise ValueError(
                "YaRN needs 0 < beta_slow <= beta_fast, both finite, got beta_slow"
                f" {self.beta_slow} and beta_fast {self.beta_fast}"
            )

    def kept(self, width: int, base: float) -> np.ndarray:
        """Returns the weight of each pair's original frequency, 0 to 1, float64 [width/2]."""
        first, last = (
            width * math.log(self.original_context / (2 * np.pi * turns)) / (2 * math.log(base))
            for turns in (self.beta_fast, self.beta_slow)
        )
        first, last = max(0, math.floor(first)), min(width - 1, math.ceil(last))
        # The ends may lie outside the pairs. If the last is before the first, the slope is a step.
        slope = (np.arange(width // 2) - first) / max(1, last - first)
        return 1 - np.clip(slope, 0, 1)


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Which elements of a head rotate, how fast, and how a longer context slows them down.

    Attributes:
        width: Number of rotated elements per head, the first ones. Even, at most the head width.
        base: Frequency i is base**(-2i/width) radians per position.
        interleaved: Whether pairs are (0, 1), (2, 3), ... (ggml's "norm") rather than
            (0, width/2), (1, width/2 + 1), ... ("neox").
        scale: Divisor of the frequencies: of all of them (linear context extension), or of those
            that `yarn` selects.
        factors: Additional divisors, one per frequency, [width/2], or None. Llama 3 files store
            them in `rope_freqs.weight`, Phi 3 files in `rope_factors_long.weight`. A pair with an
            infinite divisor does not rotate.
        yarn: Which frequencies `scale` divides; None for all.
        magnitude: Factor of cosines and sines (the attention factor of YaRN and LongRoPE). Scores
            grow by its square. Elements that do not rotate are not multiplied.
    """

    width: int
    base: float = 10000.0
    interleaved: bool = False
    scale: float = 1.0
    factors: tuple[float, ...] | None = None
    yarn: Yarn | None = None
    magnitude: float = 1.0

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
        if self.factors is not None and not all(factor > 0 for factor in self.factors):
            raise ValueError(f"rope factors must be positive, got {self.factors}")
        if self.yarn is not None and self.base <= 1:
            raise ValueError(f"YaRN needs a rope base above 1, got {self.base}")
        if not (np.isfinite(self.magnitude) and self.magnitude > 0):
            raise ValueError(f"rope magnitude must be positive and finite, got {self.magnitude}")

    def extended(
        self,
        kind: str,
        factor: float = 1.0,
        *,
        original_context: int = 0,
        attn_factor: float = 1.0,
        log_multiplier: float = 0.0,
        mscale: float = 1.0,
        beta_fast: float = 32.0,
        beta_slow: float = 1.0,
    ) -> "RopeConfig":
        """Returns this config with the context extension of the metadata keys `rope.scaling.*`.

        The extension replaces the config's own scale, yarn and magnitude.

        Args:
            kind: "none", "linear", "yarn" or "longrope". LongRoPE differs from linear only in its
                `factors`, which `longrope_factors` chooses.
            factor: The factor by which the context grows. 0 counts as 1, as in llama.cpp.
            original_context: The context length before the extension; only YaRN uses it.
            attn_factor: A factor of cosines and sines, for every kind.
            log_multiplier: `yarn_magnitude` with this multiplier divides YaRN's own magnitude.
                Transformers calls it `mscale_all_dim`; deepseek2 files store a tenth of it.
            mscale: The multiplier of YaRN's own magnitude. In deepseek2 it equals log_multiplier
                unless log_multiplier is 0.
            beta_fast: See `Yarn`.
            beta_slow: See `Yarn`.

        Raises:
            ValueError: The kind is not supported, or a number is out of range.
        """
        if kind not in KINDS:
            raise ValueError(f"rope scaling {kind!r} is not supported, only {', '.join(KINDS)}")
        scale = 1.0 if kind == "none" or factor == 0 else factor
        if kind != "yarn":
            return dataclasses.replace(self, scale=scale, yarn=None, magnitude=attn_factor)
        own = yarn_magnitude(scale, mscale) / yarn_magnitude(scale, log_multiplier)
        yarn = Yarn(original_context, beta_fast, beta_slow)
        return dataclasses.replace(self, scale=scale, yarn=yarn, magnitude=attn_factor * own)

    def turns(self) -> np.ndarray:
        """Returns the frequencies in units of 2**-32 turns per position, uint32 [width/2]."""
        unscaled = self.base ** (-np.arange(0, self.width, 2, dtype=np.float64) / self.width)
        with np.errstate(over="ignore"):  # numbers that are not finite raise an error below
            radians = unscaled / self.scale
        if self.yarn is not None:
            kept = self.yarn.kept(self.width, self.base)
            radians = kept * unscaled + (1 - kept) * radians
        if self.factors is not None:
            radians = radians / np.asarray(self.factors, np.float64)
        if not np.isfinite(radians).all():
            raise ValueError(
                f"rope base {self.base} and scale {self.scale} give no finite frequency"
            )
        # Whole turns have no effect, and a number above 2**64 would overflow.
        turns = np.fmod(radians / (2 * np.pi), 1)
        return (np.round(turns * 2.0**32).astype(np.uint64) % 2**32).astype(np.uint32)


def yarn_magnitude(factor: float, multiplier: float = 1.0) -> float:
    """Returns YaRN's attention factor for a context that is `factor` times as long.

    Latent attention multiplies its score scale by (m * yarn_magnitude(factor, log_multiplier))**2,
    where m is the magnitude of its RopeConfig.
    """
    return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0


def longrope_factors(short, long, *, context: int, original_context: int):
    """Chooses the factors of LongRoPE: the long ones for a context above the original one.

    As in llama.cpp, the context length with which a model is opened decides. All positions then
    rotate with the same factors.

    Args:
        short: The factors for contexts up to the original one.
        long: The factors for longer contexts.
        context: The context length with which the model is opened.
        original_context: The context length of the original training.
    """
    return long if context > original_context else short


def attention_temperature(positions_BT, scale: float, floor_scale: int, offset: int = 0):
    """Returns the factor of queries that sharpens attention at later positions, float32 [B, T].

    The factor is 1 + scale * log(1 + floor((position + offset) / floor_scale)). The division is an
    integer division, so the steps are exact at any position.

    Args:
        positions_BT: Integer positions.
        scale: `attention.temperature_scale`; 0.1 in Llama 4.
        floor_scale: The length of a step in positions: `rope.scaling.original_context_length` in
            mistral3, `attention.temperature_length` in deepseek2, 8192 in Llama 4.
        offset: 1 in Llama 4, 0 in the others.

    Raises:
        ValueError: floor_scale is not positive, or scale is not finite.
    """
    if floor_scale < 1 or not np.isfinite(scale):
        raise ValueError(
            "attention temperature needs a positive floor_scale and a finite scale, got"
            f" {floor_scale} and {scale}"
        )
    steps = (positions_BT.astype(jnp.uint32) + jnp.uint32(offset)) // jnp.uint32(floor_scale)
    return 1 + jnp.float32(scale) * jnp.log1p(steps.astype(jnp.float32))


def rope_table(positions_BT, config: RopeConfig):
    """Returns (cos, sin) of integer positions, both float32 [B, T, width/2].

    Both are multiplied by the config's magnitude. Layers with the same config share one table.
    """
    phase = positions_BT.astype(jnp.uint32)[..., None] * config.turns()[None, None]
    radians = phase.astype(jnp.int32).astype(jnp.float32) * jnp.float32(2 * np.pi / 2**32)
    cos, sin = jnp.cos(radians), jnp.sin(radians)
    if config.magnitude == 1:
        return cos, sin
    return cos * jnp.float32(config.magnitude), sin * jnp.float32(config.magnitude)


def apply_rope(x_BTNH, table, config: RopeConfig):
    """Rotates the first config.width elements of each head.

    Args:
        x_BTNH: Queries or keys.
        table: The cosines and sines of the positions, from `rope_table`.
        config: The configuration with which the table was made.

    Returns:
        An array of x's shape and dtype; the other elements are unchanged.
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
