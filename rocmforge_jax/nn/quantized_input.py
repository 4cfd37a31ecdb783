"""An array together with its quantised form, which a kernel made for the products that follow."""

import dataclasses

import jax

from pallas_kernels.qmatmul import Activations


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedInput:
    """The input of a product, perhaps quantised already, which saves a launch.

    Attributes:
        array: [..., D].
        activations: The Activations of its rows, flattened, or None.
    """

    array: jax.Array
    activations: Activations | None = None

    def activations_in(self, mode: str) -> Activations | None:
        """Returns the Activations if they are of this mode, else None."""
        ready = self.activations
        return ready if ready is not None and ready.mode == mode else None


def array_of(x: jax.Array | QuantizedInput) -> jax.Array:
    """Returns the array itself."""
    return x.array if isinstance(x, QuantizedInput) else x
