"""The way out of a model: `save` writes it to a file or a folder that other programs read."""

from rocmforge_jax.export.save import FORMATS, check_format, save

__all__ = ["FORMATS", "check_format", "save"]
