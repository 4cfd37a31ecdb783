"""Small files of random weights in F32, whose logits tools/make_family_logits.py stores.

The weights come from seeds, so a clone needs the logits alone.
"""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rocmforge_jax.gguf import GGUFFile, open_gguf, write_gguf

#: The logits of llama.cpp, by the name of a case: float32 [rows, V].
LOGITS = Path(__file__).parents[1] / "data" / "families.npz"
#: Rows of the vocabulary, and tokens that the model is made for.
VOCABULARY, CONTEXT = 67, 256
#: The prompt, and the positions whose logits are stored: starts and ends of pieces among them.
IDS = np.random.default_rng(5).integers(0, VOCABULARY, 211).astype(np.int32)
ROWS = (0, 7, 103, 104, 150, 208, 209)
#: How a test cuts the prompt for a cache.
PIECES = (104, 104, 1, 1, 1)
#: Makes the values of a tensor: (random, shape) -> array.
Values = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def decay(random, shape):
    """Rates of a recurrence, below 0."""
    return -np.exp(random.normal(0, 0.5, shape))


def of_size(size: float) -> Values:
    """Makes values of about this size: random layers that add much amplify rounding."""
    return lambda random, shape: size * random.normal(1, 0.2, shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A file.

    Attributes:
        name: Of the case.
        architecture: The family.
        keys: Of the architecture, without its prefix; None for one that is not there.
        shapes: Tensor -> its shape, as a file has it.
        gate: The largest relative L2 error of the logits, float32.
        what: What is compared: the decoder's "logits", or those of "nextn".
        values: The end of a tensor's name -> what makes its values, where it is no weight.
    """

    name: str
    architecture: str
    keys: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    gate: float = 1e-5
    what: str = "logits"
    values: Mapping[str, Values] = dataclasses.field(default_factory=dict)

    def __str__(self):
        return self.name

    def write(self, path: Path, tensors=()) -> GGUFFile:
        """Writes the file.

        tensors: Name -> (format, array) in place of the values here, None leaves one out.
        """
        metadata = {
            "general.architecture": self.architecture,
            "tokenizer.ggml.model": "none",
            f"{self.architecture}.vocab_size": VOCABULARY,
            f"{self.architecture}.context_length": CONTEXT,
        }
        metadata |= {
            key if key.startswith("xielu.") else f"{self.architecture}.{key}": value
            for key, value in self.keys.items()
            if value is not None
        }
        written = {name: ("F32", self.values_of(name)) for name in self.shapes} | dict(tensors)
        written = {name: tensor for name, tensor in written.items() if tensor is not None}
        write_gguf(path, metadata, written)
        return open_gguf(path)

    def values_of(self, name: str) -> np.ndarray:
        """Returns the values of a tensor, float32."""
        random = np.random.default_rng(zlib.crc32(f"{self.name} {name}".encode()))
        shape = self.shapes[name]
        for end, make in self.values.items():
            if name.endswith(end):
                return make(random, shape).astype(np.float32)
        values = random.normal(0, 1, shape)
        if len(shape) > 1 and not name.endswith("token_embd.weight"):
            values *= shape[-1] ** -0.5
        elif name.endswith("weight") and len(shape) == 1:
            values = 1 + 0.2 * values
        elif len(shape) == 1:
            values *= 0.2
        return values.astype(np.float32)
