"""An array with what a kernel made of it for the products that it goes into."""

import dataclasses

import jax

from pallas_kernels.qmatmul.activations import Activations
from rocmforge_jax.nn.norm import RMSNorm


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prepared:
    """x [..., D], and perhaps its Activations, rows flattened, for the one norm or the products that it goes into: a launch less.

    normed: the array is what the norm gave, and so are the Activations, though for these a division is left.
    """

    array: jax.Array
    activations: Activations | None = None
    normed: bool = dataclasses.field(default=False, metadata=dict(static=True))

    def for_products(self, norm: RMSNorm | None, mode: str) -> Activations | None:
        """The Activations, if they are of this mode and after such a norm, whose scale whoever made them knew."""
        found = self.activations
        if found is None or found.mode != mode:
            return None
        if norm is None:
            fits = found.squares is None or self.normed
        else:
            fits = found.squares is not None and found.epsilon == norm.epsilon and not self.normed
        return found if fits else None

    def last_token(self) -> "Prepared":
        """[B, 1, D] -> [B, D]."""
        return dataclasses.replace(self, array=self.array[:, 0])


def array_of(x: jax.Array | Prepared) -> jax.Array:
    """The array itself."""
    return x.array if isinstance(x, Prepared) else x
