"""Limits of a sequence, and the cache that is kept from one text to the next."""

import jax.numpy as jnp
import pytest

from rocmforge_jax.generate import PrefixCache, SamplingParams, Sequence
from rocmforge_jax.nn import Cache, KVState

pytestmark = pytest.mark.core


def sequence(prompt=(1, 2, 3), **options):
    return Sequence(prompt, SamplingParams(), **{"context_length": 20, **options})


@pytest.mark.parametrize(
    ("max_tokens", "limit", "reason"),
    [(None, 17, "context"), (5, 5, "length"), (17, 17, "length"), (18, 17, "context")],
)
def test_limits_and_the_reason_at_each(max_tokens, limit, reason):
    one = sequence(max_tokens=max_tokens)
    assert (one.limit, one.longest) == (limit, 3 + limit)
    taken = one.take(list(range(30)), [-1.0] * 30)
    assert (len(taken.ids), len(taken.logprobs), taken.finish_reason) == (limit, limit, reason)
    assert one.take([4], [-1.0]).ids == []


def test_a_sequence_wants_no_more_than_is_begun():
    one = sequence(max_tokens=9)
    assert one.wants_more
    one.begun = 8
    assert one.wants_more
    one.begun = 9
    assert not one.wants_more
    stopped = sequence(stop_ids={7})
    assert stopped.take([4, 7, 5], [-1.0, -2.0, -3.0]).ids == [4]
    assert not stopped.wants_more and stopped.finish_reason == "stop"


def test_the_text_holds_all_that_was_read():
    """The cache holds these tokens, so a prompt that goes on like this needs them."""
    one = sequence(stop_ids={7})
    one.take([4, 7, 5], [-1.0] * 3)
    assert one.text == [1, 2, 3, 4, 7, 5] and one.prompt == [1, 2, 3]


def cache_of(tokens):
    state = KVState.zeros(1, 1, 4, 32, jnp.float32)
    return Cache((state,), jnp.full(1, tokens, jnp.int32), 32)


@pytest.fixture
def kept():
    """The prefix cache of a text of 30 tokens, of which the cache lacks the last two."""
    prefix = PrefixCache()
    prefix.keep(list(range(30)), cache_of(28))
    return prefix


@pytest.mark.parametrize(
    ("prompt", "common"),
    [
        (list(range(40)), 28),
        (list(range(20)), 20),
        (list(range(18)) + [0] * 9, 18),
        ([5], 0),
    ],
)
def test_tokens_that_a_prompt_shares_with_the_text(kept, prompt, common):
    assert kept.common(prompt) == common
    cache, known, _ = kept.take(prompt)
    assert known == (min(common, len(prompt) - 1) if common else 0)
    assert cache is None if not common else cache.lengths_B.tolist() == [known]
    assert kept.take(prompt)[:2] == (None, 0)  # it was given away


@pytest.mark.parametrize(("length", "known"), [(15, 0), (16, 0), (17, 16)])
def test_few_tokens_are_computed_again(kept, length, known):
    """At least 16 must be shared, and the last token of the prompt is never among them."""
    assert kept.take(list(range(length)))[1] == known


def test_a_forgotten_or_donated_cache_is_not_reused(kept):
    kept.forget()
    assert kept.take(list(range(40)))[:2] == (None, 0)
    cache = cache_of(0)
    kept.keep(list(range(30)), cache)
    cache.layers[0].keys.delete()
    assert kept.common(list(range(30))) == 0
