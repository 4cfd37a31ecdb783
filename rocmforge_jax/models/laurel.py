"""LAuReL: a learned low-rank residual connection parallel to the mixer (arXiv:2411.07501)."""

import dataclasses
from collections.abc import Mapping

from flax import nnx

from rocmforge_jax.models.make import Make, check_sizes
from rocmforge_jax.nn import products


@dataclasses.dataclass(frozen=True)
class Laurel:
    """Computes h + laurel_post_norm(laurel_r(laurel_l(h))), where h is the input of the mixer.

    The layer adds the result to the residual stream and divides the sum by sqrt(2).

    Attributes:
        rank: The width between the two projections.
    """

    rank: int

    def __post_init__(self):
        check_sizes(rank=self.rank)

    def modules(self, make: Make) -> Mapping[str, nnx.Module]:
        """Makes the projections and the norm."""
        return {
            "laurel_l": make.linear("laurel_l", make.width, self.rank),
            "laurel_r": make.linear("laurel_r", self.rank, make.width),
            "laurel_post_norm": make.norm("laurel_post_norm", make.width),
        }

    def __call__(self, layer, x_BTD, norm):
        """Computes the term for the residual stream from h = norm(x), [B, T, D]."""
        read_BTD = x_BTD if norm is None else norm(x_BTD)
        (low,) = products(read_BTD, [layer.laurel_l])
        (y_BTD,) = products(low, [layer.laurel_r])
        return read_BTD + layer.laurel_post_norm(y_BTD)
