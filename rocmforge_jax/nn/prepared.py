"""An array with what a kernel made of it for the products that it goes into."""

import dataclasses

import jax

from pallas_kernels.qmatmul import Activations


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prepared:
    """x [..., D], and perhaps its Activations, rows flattened, for the products that it goes into:
    a launch less.
    """

    array: jax.Array
    activations: Activations | None = None

    def for_products(self, mode: str) -> Activations | None:
        """The Activations, if they are of this mode."""
        return (
            self.activations
            if self.activations is not None and self.activations.mode == mode
            else None
        )


def array_of(x: jax.Array | Prepared) -> jax.Array:
    """The array itself."""
    return x.array if isinstance(x, Prepared) else x
