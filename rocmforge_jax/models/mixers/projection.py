"""A linear projection instead of attention: tokens do not see one another."""

import dataclasses
from collections.abc import Mapping

from flax import nnx

from rocmforge_jax.models.make import Make, check_sizes, check_width
from rocmforge_jax.models.parts import Tokens
from rocmforge_jax.nn import NoState


@dataclasses.dataclass(frozen=True)
class Projection:
    """Only the projection attn_output, which replaces attention in some layers of Nemotron 51B.

    Attributes:
        width: The width of the model, D.
    """

    width: int
    output = "attn_output"
    rope = None
    source = None
    takes_mask = True

    def __post_init__(self):
        check_sizes(width=self.width)

    def modules(self, make: Make) -> Mapping[str, nnx.Module]:
        """Makes the projection."""
        check_width(self.width, make.width)
        return {"attn_output": make.linear("attn_output", self.width, self.width)}

    def init_state(self, batch: int, length: int, dtype) -> NoState:
        """Makes an empty state: the layer needs none."""
        return NoState()

    def __call__(self, layer, x_BTD, norm, tokens: Tokens, state: NoState | None):
        """Computes the input of the projection [B, T, D], and returns the state unchanged."""
        return x_BTD if norm is None else norm(x_BTD), state

    def workspace(self, tokens: int, slots: int) -> int:
        """Returns 0, because the temporaries are only a few times the residual stream."""
        return 0
