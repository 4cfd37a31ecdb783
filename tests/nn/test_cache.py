"""The cache: written where it should be, in place, and read as it lies."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rocmforge_jax.nn import Cache, KVState, attend, causal_mask

pytestmark = pytest.mark.core


@pytest.mark.parametrize("batch", range(1, 10))
def test_tokens_go_to_each_sequences_own_slots(batch, normal):
    K, H, S, T = 2, 8, 16, 3
    starts = np.random.default_rng(batch).integers(0, S - T + 1, batch).astype(np.int32)
    old_k, old_v = normal(batch, S, K, H), normal(batch, S, K, H, seed=1)
    new_k, new_v = normal(batch, T, K, H, seed=2), normal(batch, T, K, H, seed=3)
    cache = jax.jit(KVState.write)(
        KVState.of(jnp.asarray(old_k), jnp.asarray(old_v)), new_k, new_v, starts
    )
    for b, start in enumerate(starts):
        old_k[b, start : start + T], old_v[b, start : start + T] = new_k[b], new_v[b]
    np.testing.assert_array_equal(cache.keys, old_k.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(cache.values, old_v.transpose(0, 2, 1, 3))


@pytest.mark.parametrize("batch", [1, 2, 9])
def test_the_first_and_the_last_slots_are_written(batch, normal):
    for start in (0, 13):
        k = normal(batch, 3, 2, 8)
        cache = KVState.zeros(batch, 2, 8, 16, jnp.float32).write(
            k, -k, np.full(batch, start, np.int32)
        )
        expected = np.zeros((batch, 16, 2, 8), np.float32)
        expected[:, start : start + 3] = k
        np.testing.assert_array_equal(cache.keys, expected.transpose(0, 2, 3, 1))
        np.testing.assert_array_equal(cache.values, -expected.transpose(0, 2, 1, 3))


def test_tokens_are_rounded_to_the_caches_dtype(normal):
    k = normal(1, 1, 1, 8)
    cache = KVState.zeros(1, 1, 8, 2, jnp.bfloat16).write(k, k, np.zeros(1, np.int32))
    assert cache.keys.dtype == cache.values.dtype == jnp.bfloat16
    np.testing.assert_array_equal(cache.values[0, 0, 0], k[0, 0, 0].astype(jnp.bfloat16))


def decode_step(q, k, v, cache, starts):
    cache = cache.write(k, v, starts)
    return attend(q, cache, causal_mask(starts[:, None], cache.length)), cache


def compiled_step(optimised, batch, dtype, K=2, H=64, S=512):
    def token(heads):
        return jax.ShapeDtypeStruct((batch, 1, heads, H), jnp.float32)

    cache = jax.eval_shape(lambda: KVState.zeros(batch, K, H, S, dtype))
    starts = jax.ShapeDtypeStruct((batch,), jnp.int32)
    step = jax.jit(decode_step, donate_argnums=3)
    return step.lower(token(2 * K), token(K), token(K), cache, starts).compile(optimised), cache


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("batch", [1, 2, 8, 9])
def test_a_decode_step_neither_copies_nor_transposes_nor_casts_the_cache(batch, dtype, optimised):
    compiled, cache = compiled_step(optimised, batch, dtype)
    size, nbytes = cache.keys.size, 2 * cache.keys.size * jnp.dtype(dtype).itemsize
    operations = re.findall(r"= \w+\[([\d,]+)\]\S* (copy|transpose|convert)\(", compiled.as_text())
    assert not [found for found in operations if math.prod(map(int, found[0].split(","))) >= size]
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == nbytes
    assert memory.temp_size_in_bytes < nbytes / 4


@pytest.mark.parametrize("batch", [1, 3])
def test_a_donated_cache_stays_where_it_is(batch, normal):
    cache = KVState.zeros(batch, 2, 64, 128, jnp.float32)

    def place(cache):
        return (cache.keys.unsafe_buffer_pointer(), cache.values.unsafe_buffer_pointer())

    step, before, old = jax.jit(decode_step, donate_argnums=3), place(cache), cache
    for position in range(3):
        token = jnp.asarray(normal(batch, 1, 2, 64, seed=position))
        _, cache = step(
            jnp.tile(token, (1, 1, 2, 1)),
            token,
            token,
            cache,
            jnp.full((batch,), position, jnp.int32),
        )
    assert place(cache) == before
    assert old.keys.is_deleted() and old.values.is_deleted()


def test_a_cache_counts_its_layers_slots_and_bytes():
    cache = empty(3, 2, 4, 32, 10, jnp.bfloat16)
    assert (len(cache.layers), cache.batch, cache.length) == (3, 2, 10)
    assert cache.layers[0].keys.shape == (2, 4, 32, 10) and cache.layers[0].values.shape == (
        2,
        4,
        10,
        32,
    )
    assert cache.nbytes == 3 * 2 * 2 * 4 * 32 * 10 * 2 + 2 * 4
    assert cache.lengths_B.dtype == jnp.int32 and cache.lengths_B.tolist() == [0, 0]
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(cache)]
    assert len(set(buffers)) == len(buffers)  # else a donated cache would appear twice


def empty(layers, batch, kv_heads, head_width, length, dtype):
    states = (KVState.zeros(batch, kv_heads, head_width, length, dtype) for _ in range(layers))
    return Cache(tuple(states), jnp.zeros(batch, jnp.int32), length)


def filled(normal, batch=3, length=12, dtype=jnp.float32):
    """A cache of two layers with another number in every slot."""
    layers = tuple(
        KVState.of(
            jnp.asarray(normal(batch, length, 2, 8, seed=2 * layer)).astype(dtype),
            jnp.asarray(normal(batch, length, 2, 8, seed=2 * layer + 1)).astype(dtype),
        )
        for layer in range(2)
    )
    return Cache(layers, jnp.arange(1, batch + 1, dtype=jnp.int32), length)


def arrays(cache):
    return list(map(np.array, jax.tree.leaves(cache)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("b", [0, 1, 2])
def test_a_row_is_one_sequence_and_replaces_one(normal, b, dtype):
    cache, other = filled(normal, dtype=dtype), filled(lambda *s, seed: -normal(*s, seed=seed), 1)
    other = jax.tree.map(lambda new, old: new.astype(old.dtype), other, cache)
    row = jax.jit(Cache.row)(cache, jnp.int32(b))
    assert (row.batch, row.length) == (1, 12)
    for array, whole in zip(arrays(row), arrays(cache)):
        np.testing.assert_array_equal(array, whole[b : b + 1])
    expected = arrays(cache)
    for array, new in zip(expected, arrays(other)):
        array[b] = new[0]
    changed = jax.jit(Cache.with_row)(cache, jnp.int32(b), other)
    for array, wanted in zip(arrays(changed), expected):
        np.testing.assert_array_equal(array, wanted)
    for array, whole in zip(arrays(changed.with_row(b, row)), arrays(cache)):
        np.testing.assert_array_equal(array, whole)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("batch", [3, 9])
def test_a_row_is_replaced_in_place(batch, dtype, optimised):
    """Where the cache is donated: no other row is copied or cast."""

    def shapes(batch):
        return jax.eval_shape(lambda: empty(2, batch, 2, 64, 128, dtype))

    row = jax.ShapeDtypeStruct((), jnp.int32)
    step = jax.jit(Cache.with_row, donate_argnums=0)
    compiled = step.lower(shapes(batch), row, shapes(1)).compile(optimised)
    memory, cache = compiled.memory_analysis(), shapes(batch)
    assert memory.alias_size_in_bytes == cache.nbytes
    size = cache.layers[0].keys.size
    operations = re.findall(r"= \w+\[([\d,]+)\]\S* (copy|transpose|convert)\(", compiled.as_text())
    assert not [found for found in operations if math.prod(map(int, found[0].split(","))) >= size]
    assert memory.temp_size_in_bytes < cache.nbytes / 4


def test_a_row_of_another_batch_or_length_is_refused(normal):
    cache = filled(normal)
    with pytest.raises(ValueError, match="batch 1 and 12 slots, got batch 2 and 12"):
        cache.with_row(0, filled(normal, batch=2))
    with pytest.raises(ValueError, match="batch 1 and 12 slots, got batch 1 and 13"):
        cache.with_row(0, filled(normal, batch=1, length=13))


def test_a_grown_cache_holds_the_same_and_has_room(normal):
    cache = filled(normal)
    grown = cache.grown(20)
    assert grown.length == 20 and grown.lengths_B.tolist() == cache.lengths_B.tolist()
    for new, old in zip(grown.layers, cache.layers):
        np.testing.assert_array_equal(new.keys[..., :12], old.keys)
        np.testing.assert_array_equal(new.values[:, :, :12], old.values)
        assert not new.keys[..., 12:].any() and not new.values[:, :, 12:].any()
    with pytest.raises(ValueError, match="12 slots cannot grow to 11"):
        cache.grown(11)


def test_a_rewound_cache_goes_on_from_there(normal):
    """What was written after that point is not seen again."""
    cache, T = filled(normal, batch=2), 3
    new = jnp.asarray(normal(2, T, 2, 8, seed=9))
    rewound = cache.rewound(9, 4)
    assert rewound.lengths_B.tolist() == [4, 4] and rewound.lengths_B.dtype == jnp.int32
    written = rewound.layers[0].write(new, new, rewound.lengths_B)
    query = jnp.asarray(normal(2, 1, 4, 8, seed=10))
    seen = attend(query, written, causal_mask(rewound.lengths_B[:, None] + T - 1, 12))
    for b, length in enumerate((4, 4)):
        alone = jax.tree.map(lambda array, b=b: array[b : b + 1], written)
        short = KVState(alone.keys[..., : length + T], alone.values[:, :, : length + T])
        everything = jnp.ones((1, 1, length + T), bool)
        np.testing.assert_allclose(
            seen[b], attend(query[b : b + 1], short, everything)[0], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_bytes_are_known_before_anything_is_allocated(dtype):
    shapes = jax.eval_shape(lambda: empty(3, 2, 4, 32, 10, dtype))
    cache = empty(3, 2, 4, 32, 10, dtype)
    assert shapes.nbytes == cache.nbytes == sum(array.nbytes for array in arrays(cache))
    assert cache.layers[0].nbytes == cache.layers[0].keys.nbytes + cache.layers[0].values.nbytes
