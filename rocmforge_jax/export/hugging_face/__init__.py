"""Writes decoders with the names and the configuration of transformers."""

from rocmforge_jax.export.hugging_face.folder import write

__all__ = ["write"]
