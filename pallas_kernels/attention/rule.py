"""The rule of attention: which slots a query sees, and the weight of each of them."""

import dataclasses
import math
import numbers

import jax
import jax.numpy as jnp
import numpy as np

#: GPUs have an instruction for 2^x, not for e^x: e^x = 2^(x * LOG2_E).
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

    A pytree whose only leaf is `sinks_N`. The other fields are static: new values compile a new
    program.

    Attributes:
        scale: factor of the products of queries and keys.
        causal: whether a query sees no slot after its own. Otherwise it sees all filled slots.
        window: how many slots a query sees, including its own; None for all. Without `causal` it is
            odd, and the query is at its centre.
        soft_cap: a cap c that replaces each score by c * tanh(score / c), or None.
        chunk: how many slots a chunk has, or None. A query sees the slots of its own chunk only;
            slot s is in chunk s // chunk. Only the reference supports chunks.
        alibi: the largest exponent of ALiBi (Press et al., 2022), or None. A score decreases with
            the distance of its slot, by the head's slope (`slopes`). Only the reference supports
            ALiBi.
        sinks_N: a logit for each query head that takes a share of the weights and has no value, or
            None.

    Raises:
        ValueError: a field is out of its range.
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
        """Whether a query sees a window on both of its sides."""
        return self.window is not None and not self.causal

    def exponents(self, products, tanh=None):
        """Compute the base-2 logarithms of the weights before they are normalised.

        Args:
            products: float32, products of queries and keys.
            tanh: a function to use in place of `tanh_of_exp2`, or None.
        """
        scores, factor = self.scores(products, tanh)
        return scores * factor

    def scores(self, products, tanh=None) -> tuple[jax.Array, np.float32]:
        """Compute `exponents` as an array, and a positive factor of all of its entries."""
        scores, factor = products, np.float32(self.scale * LOG2_E)
        if self.soft_cap is not None:
            scores = (tanh or tanh_of_exp2)(products * np.float32(self.scale / self.soft_cap))
            factor = np.float32(self.soft_cap * LOG2_E)
        return (scores, factor) if factor > 0 else (scores * factor, np.float32(1))

    def slopes(self, heads: int) -> np.ndarray:
        """Return how much ALiBi lowers scores per slot of distance, float32 [heads].

        Let 2^n be the largest power of two that is at most `heads`. The slopes of the first 2^n
        heads are the powers of one number. The remaining heads have slopes in between.
        """
        assert self.alibi is not None
        power = 1 << (heads.bit_length() - 1)
        n, left = np.arange(1, power + 1), np.arange(heads - power)
        exponents = np.concatenate([n * self.alibi, (2 * left + 1) * self.alibi / 2]) / power
        return np.exp2(-exponents).astype(np.float32)

    def last_seen(self, starts, tokens, filled):
        """Return the last slot that tokens see, which may be unfilled with a symmetric window.

        Args:
            starts: the slot of the first new token.
            tokens: indices among the new tokens, from 0; broadcast with starts.
            filled: the number of filled slots, including the new tokens. A causal rule ignores it.
        """
        if self.causal:
            return starts + tokens
        if self.symmetric:
            return starts + tokens + self.window // 2
        return filled - 1 + jnp.zeros_like(tokens)

    def sees(self, positions, slots):
        """Return whether queries see slots, as bool.

        Args:
            positions: the last slot that each query sees (`last_seen`), for a causal rule its own.
            slots: indices of filled slots; broadcast with positions.
        """
        seen = slots <= positions
        if self.chunk is not None:
            seen &= slots // self.chunk == positions // self.chunk
        return seen if self.window is None else seen & (slots > positions - self.window)


def tanh_of_exp2(x):
    """Compute tanh(x) as 2 / (1 + e^-2x) - 1, with an absolute error of one rounding of 1.

    exp2 has no special cases, so no branches are needed. The gradient is NaN for x below -44.
    """
    return 2 / (1 + jnp.exp2(x * np.float32(-2 * LOG2_E))) - 1
