"""An array, optionally with its quantised form, which a kernel computed for the next product."""

import dataclasses

import jax

from pallas_kernels.qmatmul import Activations


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedInput:
    """The input of a product. If it is already quantised, the product saves a launch.

    Attributes:
        array: [..., D].
        activations: The quantised rows of the array, with flattened leading axes, or None.
    """

    array: jax.Array
    activations: Activations | None = None

    def activations_in(self, mode: str) -> Activations | None:
        """Returns the quantised rows if they have this mode, else None."""
        ready = self.activations
        return ready if ready is not None and ready.mode == mode else None


def array_of(x: jax.Array | QuantizedInput) -> jax.Array:
    """Unwraps a QuantizedInput; returns an array unchanged."""
    return x.array if isinstance(x, QuantizedInput) else x
