"""`jax` and `jnp`, imported when they are first used.

A format's declaration is plain data, and opening a file must not cost the 150 MB of jax.
"""

import importlib


class LazyModule:
    """Stands for a module and imports it when an attribute is first read."""

    def __init__(self, name):
        self._name = name

    def __getattr__(self, attribute):
        return getattr(importlib.import_module(self._name), attribute)


jax = LazyModule("jax")
jnp = LazyModule("jax.numpy")
