"""The GGUF container: a memory-mapped reader that validates every file, and a writer.

This package does not import JAX.
"""

from rocmforge_jax.gguf.errors import GGUFError
from rocmforge_jax.gguf.metadata import Metadata
from rocmforge_jax.gguf.reader import GGUFFile, open_gguf
from rocmforge_jax.gguf.tensors import TensorInfo
from rocmforge_jax.gguf.writer import write_gguf

__all__ = ["GGUFError", "GGUFFile", "Metadata", "TensorInfo", "open_gguf", "write_gguf"]
