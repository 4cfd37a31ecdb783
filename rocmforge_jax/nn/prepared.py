"""An array with what a kernel made of it for the products that it goes into."""

import dataclasses

import jax

from pallas_kernels.qmatmul.activations import Activations
from rocmforge_jax.nn.norm import RMSNorm


@dataclasses.dataclass(frozen=True)
class Prepared:
    """x [..., D], and perhaps its Activations, rows flattened, after `norm` (None: as it is): a launch less for the products of them."""

    array: jax.Array
    activations: Activations | None = None
    norm: RMSNorm | None = None

    def for_products(self, norm: RMSNorm | None, mode: str) -> Activations | None:
        """The Activations, if they are after this norm and in this mode."""
        found = self.activations
        return found if found is not None and self.norm is norm and found.mode == mode else None

    def last_token(self) -> "Prepared":
        """[B, 1, D] -> [B, D]."""
        return dataclasses.replace(self, array=self.array[:, 0])


def array_of(x: jax.Array | Prepared) -> jax.Array:
    """The array itself."""
    return x.array if isinstance(x, Prepared) else x
