"""Makes the empty caches of models."""

import functools

import jax
import jax.numpy as jnp

from rocmforge_jax.arguments import integer
from rocmforge_jax.backends import compute_dtype
from rocmforge_jax.models.config import DecoderConfig, LayerConfig
from rocmforge_jax.nn import Cache, NoState


def init_cache(config: DecoderConfig, batch: int, length: int, dtype) -> Cache:
    """Makes an empty cache of a model for `batch` sequences of up to `length` tokens.

    Raises ValueError for a size that is not a positive integer, or an unsupported dtype.
    """
    return cache_of_layers(config.layers, batch, length, dtype)


def cache_of_layers(layers: tuple[LayerConfig, ...], batch: int, length: int, dtype) -> Cache:
    """Makes an empty cache for the given layers: see `init_cache`."""
    batch, length = integer("batch", batch, 1), integer("length", length, 1)
    return _empty_cache(layers, batch, length, compute_dtype(dtype))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _empty_cache(layers, batch, length, dtype):
    """Makes all states in one compiled program; one program per array would start more slowly."""
    mixers = [layer.mixer for layer in layers]
    states = tuple(
        NoState() if mixer is None else mixer.init_state(batch, length, dtype) for mixer in mixers
    )
    return Cache(states, jnp.zeros((batch,), jnp.int32), length)
