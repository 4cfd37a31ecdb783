"""The state of a recurrence with one matrix per head, and of the short convolution before it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rocmforge_jax.backends.on_mesh import BATCH_AXIS, MODEL_AXIS
from rocmforge_jax.nn.convolution import ConvState
from rocmforge_jax.nn.state import State, partition


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class MemoryState(State):
    """The memory of each head, and the state of the preceding convolution.

    Attributes:
        memory_BNHW: float32, one matrix per head, initially zeros. It is key width by value width
            in `delta_rule`, and head width by state width in `selective_scan`.
        conv: The state of the convolution.
    """

    memory_BNHW: jax.Array
    conv: ConvState

    @classmethod
    def zeros(
        cls,
        batch: int,
        memory: tuple[int, int, int],
        *,
        taps: int,
        channels: int,
        dtype,
    ) -> "MemoryState":
        """Returns the state before the first token.

        Args:
            batch: Number of sequences.
            memory: Number of heads, and the rows and columns of their matrices.
            taps: Taps of the convolution.
            channels: Channels of the convolution.
            dtype: Dtype of the convolution's inputs.
        """
        memory_BNHW = jnp.zeros((batch, *memory), jnp.float32)
        return cls(memory_BNHW, ConvState.zeros(batch, taps, channels, dtype))

    def specs(self, mesh: Mesh) -> "MemoryState":
        """Returns PartitionSpecs: the batch over the axis "data", heads over "model"."""
        axes = {0: BATCH_AXIS, 1: MODEL_AXIS}
        memory: Any = partition(mesh, self.memory_BNHW.shape, axes)
        return MemoryState(memory, self.conv.specs(mesh))
