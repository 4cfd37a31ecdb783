"""Snapshots by themselves: what is copied, what is dropped, what is restored."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rocmforge_jax.generate import PrefixCache, Snapshots, snapshots
from rocmforge_jax.nn import Cache, ConvState, KVState, State

pytestmark = pytest.mark.core
#: float32 of a convolution of 3 taps over 7 channels.
SIZE = 2 * 7 * 4


@pytest.fixture
def cache_of(normal):
    """cache_of(tokens, length): keys and values, then a convolution, all random."""

    def cache_of(tokens, length=32):
        kv = KVState(normal(1, 2, 3, length), normal(1, 2, length, 3))
        return Cache((kv, ConvState(normal(1, 2, 7))), jnp.full(1, tokens, jnp.int32), length)

    return cache_of


@pytest.fixture
def normal():
    rng = np.random.default_rng(3)
    return lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)


def taken(most_bytes, cache_of, lengths, prompt_tokens):
    """The lengths of the snapshots that are left after some were taken."""
    some = Snapshots(most_bytes)
    some.prompt_tokens = prompt_tokens
    for length in lengths:
        some.take(cache_of(length), length)
        assert some.nbytes == SIZE * len(some.lengths) <= most_bytes
    return some.lengths


def test_a_snapshot_is_a_copy_of_what_cannot_be_rewound(cache_of):
    some, cache = Snapshots(SIZE), cache_of(20)
    assert snapshots.snapshot_size(cache) == SIZE
    expected = np.array(cache.layers[1].inputs)
    some.take(cache, 20)
    assert (some.lengths, some.nbytes) == ([20], SIZE)
    cache.layers[1].inputs.delete()  # as if the next step had taken it
    later = cache_of(29)
    for _ in range(2):
        restored = some.restore(later, 20)
        assert restored.lengths_B.tolist() == [20] and restored.length == 32
        assert restored.layers[0] is later.layers[0]
        np.testing.assert_array_equal(restored.layers[1].inputs, expected)
        restored.layers[1].inputs.delete()
    assert some.restore(later, 19) is None


def test_nothing_is_copied_where_all_states_rewind(cache_of, monkeypatch):
    monkeypatch.setattr(snapshots, "_copied", None)
    cache = cache_of(20)
    cache = Cache(cache.layers[:1], cache.lengths_B, cache.length)
    some = Snapshots(10**6)
    some.take(cache, 20)
    assert some.lengths == [] and not some.suit(cache)
    assert some.rewind(cache, 13)[0].lengths_B.tolist() == [13]


def test_the_best_snapshot_is_the_longest_that_fits(cache_of):
    some = Snapshots(10 * SIZE)
    assert some.best(100) == 0
    for length in (16, 20, 28):
        some.take(cache_of(length), length)
    assert [some.best(n) for n in (15, 16, 19, 20, 27, 99)] == [0, 16, 16, 20, 20, 28]


@pytest.mark.parametrize(
    ("count", "lengths", "prompt_tokens", "left"),
    [
        (4, (10, 20, 30, 40), 0, [10, 20, 30, 40]),
        (3, (10, 20, 50, 60), 0, [20, 50, 60]),  # gaps without 10, 20, 50: 20, 40, 40
        (3, (30, 50, 60, 90), 0, [30, 60, 90]),  # gaps without 30, 50, 60: 50, 30, 40
        (3, (30, 50, 60, 90), 55, [30, 50, 90]),  # the same, but 50 is exempt
        (3, (10, 20, 30, 40, 50, 60), 0, [20, 40, 60]),
        (2, (10, 20, 30, 40), 20, [10, 40]),
        (2, (10, 20, 30, 40), 21, [20, 40]),
        (1, (10, 20, 30), 0, [30]),
        (1, (10, 20, 30), 30, [20]),
        (1, (10, 20, 30), 15, [10]),
        (0, (10, 20), 15, []),
    ],
)
def test_what_is_dropped_where_there_is_no_room(cache_of, count, lengths, prompt_tokens, left):
    """The smallest gap; never the newest and the last one before the prompt's end, if both fit."""
    for spare in (0, SIZE - 1):
        assert taken(count * SIZE + spare, cache_of, lengths, prompt_tokens) == left


def test_a_snapshot_is_due_every_64_tokens(cache_of):
    some = Snapshots(0)  # also where it turned out to be too large
    some.take(cache_of(20), 20)
    assert [some.due(length) for length in (21, 83, 84)] == [False, False, True]


def test_going_back_drops_later_snapshots(cache_of):
    some = Snapshots(10 * SIZE)
    for length in (16, 20, 28):
        some.take(cache_of(length), length)
    cache, known = some.rewind(cache_of(30), 27)
    assert (known, cache.lengths_B.tolist(), some.lengths) == (20, [20], [16, 20])
    assert not some.due(83) and some.due(84)
    cache, known = some.rewind(cache, 20)
    assert known == 20 and some.lengths == [16, 20]
    assert some.rewind(cache, 12) == (None, 0) and some.lengths == []


def test_a_snapshot_grows_with_the_cache(normal):
    """A ring buffer has fewer slots than its window needs while the cache is small."""

    def cache(length):
        ring = KVState.zeros(1, 2, 3, length, jnp.float32, window=130)
        ring = dataclasses.replace(ring, values=normal(*ring.values.shape))
        return Cache((ring,), jnp.full(1, 20, jnp.int32), length)

    small, large, some = cache(64), cache(128), Snapshots(10**6)
    some.take(small, 20)
    restored = some.restore(large, 20)
    assert jax.tree.map(jnp.shape, restored) == jax.tree.map(jnp.shape, large)
    values = restored.layers[0].values
    np.testing.assert_array_equal(values[:, :, :64], small.layers[0].values)
    assert values.shape == (1, 2, 128, 3) and not values[:, :, 64:].any()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Short(State):
    """Can be rewound by 10 tokens, like a ring buffer with as many spare slots."""

    array: jax.Array

    def rewound(self, held, length):
        return self if held - length <= 10 else None


def test_tokens_that_were_held_once_count_when_a_ring_is_rewound_again():
    def cache(tokens):
        return Cache((Short(jnp.full((1, 1), tokens)),), jnp.full(1, tokens, jnp.int32), 64)

    some = Snapshots(10**6)
    some.take(cache(30), 30)
    assert some.rewind(cache(60), 52)[1] == 52
    # Two tokens more, but the slots of tokens 50 to 59 were written once.
    some.take(cache(54), 54)
    again, known = some.rewind(cache(55), 54)
    assert known == 54
    back, known = some.rewind(again, 49)
    assert known == 30 and back.layers[0].array.tolist() == [[30]]
    # The restored state had seen 30 tokens only.
    assert some.rewind(cache(33), 25)[1] == 25


def test_a_snapshot_of_a_ring_leads_back_a_few_tokens():
    """So a ring needs none before the end of a prompt, and the one at the end is exempt."""

    def cache(tokens):
        return Cache((Short(jnp.full((1, 1), tokens)),), jnp.full(1, tokens, jnp.int32), 64)

    assert not Snapshots(8).split(cache(0), 54, 10) and Snapshots(8).split(cache(0), 54, 11)
    some = Snapshots(8)  # two of one int32 each
    for prompt_tokens, length in ((54, 30), (54, 54), (54, 58), (54, 62)):
        some.prompt_tokens = prompt_tokens
        some.take(cache(length), length)
    assert some.lengths == [54, 62]
    assert [some.best(n) for n in (43, 44, 53, 54, 57, 62, 70)] == [0, 44, 53, 54, 57, 62, 62]
    assert some.restore(cache(80), 43) is None and some.restore(cache(80), 63) is None
    # 57 lies between both: the later one leads there.
    assert some.restore(cache(80), 57).layers[0].array.tolist() == [[62]]
    back, known = some.rewind(cache(80), 50)
    assert (known, back.lengths_B.tolist(), some.lengths) == (50, [50], [])
    assert back.layers[0].array.tolist() == [[54]]
    # It had held 54 tokens.
    assert some.rewind(cache(52), 44)[1] == 44 and some.rewind(cache(52), 43) == (None, 0)


def test_a_snapshot_of_few_tokens_is_not_worth_going_back_to(cache_of):
    prefix = PrefixCache(10 * SIZE)
    for length, known in ((15, 0), (16, 16)):
        some = Snapshots(10 * SIZE)
        some.take(cache_of(length), length)
        prefix.keep(list(range(30)), cache_of(28), some)
        cache, found, left = prefix.take(list(range(20)) + [0])
        assert found == known and (cache is None) == (not known)
        assert left.lengths == ([16] if known else [])
