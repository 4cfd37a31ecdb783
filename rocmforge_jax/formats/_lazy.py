"""Provides `jax` and `jnp`, imported on first use.

A format's declaration is plain data, so opening a file should not need the memory of JAX (150 MB).
"""

import importlib


class LazyModule:
    """A proxy that imports its module when an attribute is first read."""

    def __init__(self, name):
        self._name = name

    def __getattr__(self, attribute):
        return getattr(importlib.import_module(self._name), attribute)


jax = LazyModule("jax")
jnp = LazyModule("jax.numpy")
