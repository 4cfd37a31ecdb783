"""Makes the empty caches of models, where the model's weights are."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from rocmforge_jax.arguments import integer
from rocmforge_jax.backends.numerics import of_cache
from rocmforge_jax.models.config import DecoderConfig, LayerConfig
from rocmforge_jax.nn import Cache, NoState


def init_cache(
    config: DecoderConfig, batch: int, length: int, dtype, placement: Sharding | None = None
) -> Cache:
    """Makes an empty cache of a model for `batch` sequences of up to `length` tokens.

    Args:
        config: The configuration of the model.
        batch: The number of sequences.
        length: The number of slots for each of them.
        dtype: The dtype of keys and values: float32, bfloat16 or float16.
        placement: What `placement_of` returns for the model.

    Raises:
        ValueError: A size is not a positive integer, or the dtype is not supported.
    """
    return cache_of_layers(config.layers, batch, length, dtype, placement)


def cache_of_layers(
    layers: tuple[LayerConfig, ...], batch: int, length: int, dtype, placement=None
) -> Cache:
    """Makes an empty cache for the given layers: see `init_cache`."""
    batch, length = integer("batch", batch, 1), integer("length", length, 1)
    return _program(layers, batch, length, of_cache(dtype), placement)()


def placement_of(tree: Any) -> Sharding | None:
    """Returns the sharding of a model's first array; None if it is uncommitted or traced."""
    first = next(iter(jax.tree.leaves(tree)), None)
    if not isinstance(first, jax.Array) or isinstance(first, Tracer):
        return None
    return first.sharding if first.committed else None


@functools.lru_cache(256)
def _program(layers, batch, length, dtype, placement):
    """Makes all states in one compiled program; one program per array would start more slowly."""

    def make():
        mixers = [layer.mixer for layer in layers]
        states = tuple(
            NoState() if mixer is None else mixer.init_state(batch, length, dtype)
            for mixer in mixers
        )
        return Cache(states, jnp.zeros((batch,), jnp.int32), length)

    if placement is None:
        return jax.jit(make)
    return jax.jit(make, out_shardings=cache_shardings(jax.eval_shape(make), placement))


def cache_shardings(cache: Cache, placement: Sharding) -> Any:
    """Returns a sharding for each array of a cache, by `Cache.specs` on the mesh of a model."""
    if not isinstance(placement, NamedSharding):
        return jax.tree.map(lambda _: placement, cache)
    mesh: Any = placement.mesh
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        cache.specs(mesh),
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )


def bytes_on_a_device(cache: Cache, placement: Sharding | None) -> int:
    """Returns the bytes that one device holds of a cache, which may be abstract."""
    if placement is None:
        return cache.nbytes
    shardings = jax.tree.leaves(cache_shardings(cache, placement))
    return sum(
        math.prod(sharding.shard_shape(array.shape)) * array.dtype.itemsize
        for array, sharding in zip(jax.tree.leaves(cache), shardings)
    )
