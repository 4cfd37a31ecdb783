"""The rule of attention: which slots a query sees, and the weight of each of them."""

import dataclasses
import math
import numbers

import jax
import jax.numpy as jnp
import numpy as np

#: GPUs have 2^x, not e^x, as an instruction: e^x = 2^(x * LOG2_E).
LOG2_E = math.log2(math.e)
#: A finite exponent below every other. It keeps -inf from being subtracted from -inf for a query
#: that sees nothing.
LOWEST = np.float32(-1e30)


def _static(default=dataclasses.MISSING):
    return dataclasses.field(default=default, metadata=dict(static=True))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionRule:
    """How queries attend to the slots of a cache.

    A pytree whose only leaf is `sinks_N`; other values of the rest are other programs.

    Attributes:
        scale: factor of the products of queries and keys.
        causal: whether a query sees no slot after its own. Otherwise it sees all filled slots.
        window: how many slots a query sees, its own included; None for all. Without causal it is
            odd, and reaches as far to both sides of a query.
        soft_cap: a cap c that makes c * tanh(score / c) of each score, or None.
        chunk: how many slots a chunk has, or None. A query sees the slots of its own chunk only;
            slot s is in chunk s // chunk. Only the reference computes it.
        alibi: the largest exponent of ALiBi (Press et al., 2022), or None: a score falls with the
            distance of its slot, at the rate `slopes` gives for its head. Only the reference
            computes it.
        sinks_N: for each query head a logit that takes its share of the weights and has no value,
            or None.

    Raises:
        ValueError: a number is out of its range.
    """

    scale: float = _static()
    causal: bool = _static(True)
    window: int | None = _static(None)
    soft_cap: float | None = _static(None)
    chunk: int | None = _static(None)
    alibi: float | None = _static(None)
    sinks_N: jax.Array | None = None

    def __post_init__(self):
        if not isinstance(self.scale, numbers.Real) or not math.isfinite(self.scale):
            raise ValueError(f"scale must be a finite number, got {self.scale}")
        cap = self.soft_cap
        for name, size in (("window", self.window), ("chunk", self.chunk)):
            if size is not None and (not isinstance(size, numbers.Integral) or size < 1):
                raise ValueError(f"{name} must be a positive integer or None, got {size}")
        if self.chunk is not None and not self.causal:
            raise ValueError(f"chunk={self.chunk} needs causal=True, got causal={self.causal}")
        if self.symmetric and self.window % 2 == 0:
            raise ValueError(
                f"window={self.window} with causal=False must be odd: it has as many slots before a"
                " query as after it"
            )
        for name, number in (("soft_cap", cap), ("alibi", self.alibi)):
            if number is not None and not (
                isinstance(number, numbers.Real) and 0 < number < math.inf
            ):
                raise ValueError(f"{name} must be a positive number or None, got {number}")

    @property
    def symmetric(self) -> bool:
        """Whether a query sees a window to both of its sides."""
        return self.window is not None and not self.causal

    def exponents(self, products, tanh=None):
        """Logarithms to base 2 of the weights before they are normalised.

        Args:
            products: float32, products of queries and keys.
            tanh: the function to use in place of `tanh_of_exp2`.
        """
        if self.soft_cap is None:
            return products * np.float32(self.scale * LOG2_E)
        capped = (tanh or tanh_of_exp2)(products * np.float32(self.scale / self.soft_cap))
        return capped * np.float32(self.soft_cap * LOG2_E)

    def slopes(self, heads: int) -> np.ndarray:
        """How much scores fall for each slot of distance, float32 [heads], of a rule with ALiBi.

        Powers of one number for as many heads as a power of two counts; the heads that are left
        get those in between.
        """
        assert self.alibi is not None
        power = 1 << (heads.bit_length() - 1)
        n, left = np.arange(1, power + 1), np.arange(heads - power)
        exponents = np.concatenate([n * self.alibi, (2 * left + 1) * self.alibi / 2]) / power
        return np.exp2(-exponents).astype(np.float32)

    def last_seen(self, starts, tokens, filled):
        """The last slot that tokens see. That of a symmetric window may be one that is not filled.

        Args:
            starts: the slot of the first new token.
            tokens: numbers of tokens among the new ones, from 0 on; broadcast with starts.
            filled: how many slots hold tokens, the new ones included. A causal rule ignores it.
        """
        if self.causal:
            return starts + tokens
        if self.symmetric:
            return starts + tokens + self.window // 2
        return filled - 1 + jnp.zeros_like(tokens)

    def sees(self, positions, slots):
        """Whether queries see slots: bool.

        Args:
            positions: the last slot that each query sees (`last_seen`), for a causal rule its own.
            slots: numbers of filled slots; broadcast with positions.
        """
        seen = slots <= positions
        if self.chunk is not None:
            seen &= slots // self.chunk == positions // self.chunk
        return seen if self.window is None else seen & (slots > positions - self.window)


def tanh_of_exp2(x):
    """Tanh as 2 / (1 + e^-2x) - 1, with an absolute error of one rounding of 1.

    exp2 has no special cases to branch for. The gradient is NaN below -44.
    """
    return 2 / (1 + jnp.exp2(x * np.float32(-2 * LOG2_E))) - 1
