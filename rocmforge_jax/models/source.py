"""What a model keeps of the file that it was loaded from, besides its weights."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rocmforge_jax.gguf import GGUFFile, Metadata
from rocmforge_jax.models.claims import CONFIG_TENSORS


@dataclasses.dataclass(frozen=True)
class Source:
    """A copy of the head of a file, a few megabytes. It is usable without the file.

    Attributes:
        path: The path of the file.
        metadata: The metadata keys of the file.
        shapes: Name of a tensor -> its shape in the file.
        tensors: Name -> (format, bytes) of the small tensors that the configuration reads.
    """

    path: Path
    metadata: Metadata
    shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(repr=False)
    tensors: Mapping[str, tuple[str, np.ndarray]] = dataclasses.field(repr=False)

    @classmethod
    def of(cls, gguf: GGUFFile) -> "Source":
        """Copies the head of an open file."""
        kept = {name: gguf.tensors[name] for name in sorted(CONFIG_TENSORS & gguf.tensors.keys())}
        return cls(
            gguf.path,
            gguf.metadata.detached(),
            {name: tensor.shape for name, tensor in gguf.tensors.items()},
            {name: (tensor.format.name, tensor.data.copy()) for name, tensor in kept.items()},
        )
