"""The jitted steps on slots: rows enter, inactive ones stay, nothing is recompiled."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rocmforge_jax.generate import SamplingParams, Steps
from rocmforge_jax.generate.steps import insert, start

pytestmark = pytest.mark.core
LENGTH = 256
GREEDY = SamplingParams(temperature=0)
DRAWN = SamplingParams(temperature=2.0, seed=4, repetition_penalty=1.2, logit_bias={3: 1.5})
PROMPTS = [list(range(1, 20)), [7, 8, 9], list(range(40, 60))]


@pytest.fixture(scope="module")
def steps(decoder):
    return Steps(decoder)


def begun(steps, prompts, params):
    """Slots of prompts that were prefilled together, before their first dispatch."""
    cache = steps.init_cache(len(prompts), LENGTH)
    return start(*steps.prefill_prompts(prompts, cache), prompts, params)[0]


def arrays(tree):
    return list(map(np.array, jax.tree.leaves(tree)))


def with_active(slots, *active):
    return dataclasses.replace(slots, active_B=jnp.array(active))


def test_an_inactive_slot_keeps_its_tokens_and_its_length(steps):
    slots = begun(steps, PROMPTS, [GREEDY] * 3)
    cache, lengths = jax.tree.map(np.array, slots.cache), [len(prompt) for prompt in PROMPTS]
    after, _, _ = steps.decode(with_active(slots, True, False, True), 8)
    assert after.cache.lengths_B.tolist() == [lengths[0] + 8, lengths[1], lengths[2] + 8]
    for new, old in zip(after.cache.layers, cache.layers):
        np.testing.assert_array_equal(
            new.values[1, :, : lengths[1]], old.values[1, :, : lengths[1]]
        )
        np.testing.assert_array_equal(
            new.keys[1, ..., : lengths[1]], old.keys[1, ..., : lengths[1]]
        )


def test_an_inactive_slot_never_outgrows_the_cache(steps):
    slots = steps.empty_slots(2, 16)
    for _ in range(5):
        slots, _, _ = steps.decode(slots, 8)
    assert slots.cache.lengths_B.tolist() == [0, 0] and not slots.active_B.any()


def test_active_slots_do_not_depend_on_inactive_ones(steps):
    params = [GREEDY, DRAWN, DRAWN]
    _, ids, logprobs = steps.decode(begun(steps, PROMPTS, params), 8)
    slots = with_active(begun(steps, PROMPTS, params), True, False, True)
    _, some_ids, some_logprobs = steps.decode(slots, 8)
    for row in (0, 2):
        assert ids[row].tolist() == some_ids[row].tolist()
        assert logprobs[row].tolist() == some_logprobs[row].tolist()


def test_which_slots_are_active_compiles_nothing(decoder, compilations):
    steps = Steps(decoder)
    slots, _, _ = steps.decode(begun(steps, PROMPTS, [GREEDY] * 3), 8)
    active = [jnp.array([number & bit > 0 for bit in (1, 2, 4)]) for number in range(8)]
    compilations()
    for active_B in active:
        slots, _, _ = steps.decode(dataclasses.replace(slots, active_B=active_B), 8)
    assert compilations() == 0


@pytest.mark.parametrize("row", [0, 1, 2])
def test_a_row_that_enters_is_all_that_changes(steps, row):
    slots, one = (
        begun(steps, PROMPTS, [GREEDY] * 3),
        begun(steps, [[5, 6]], [SamplingParams(seed=9)]),
    )
    expected = arrays(slots)
    for array, new in zip(expected, arrays(one)):
        array[row] = new[0]
    for array, wanted in zip(arrays(insert(slots, jnp.int32(row), one)), expected):
        np.testing.assert_array_equal(array, wanted)


def test_a_row_enters_in_place_and_compiles_once_for_all_rows(steps, compilations):
    slots, one = begun(steps, PROMPTS, [GREEDY] * 3), begun(steps, [[5, 6]], [GREEDY])
    insert(begun(steps, PROMPTS, [GREEDY] * 3), jnp.int32(0), one)
    before = [layer.keys.unsafe_buffer_pointer() for layer in slots.cache.layers]
    old, rows = slots, [jnp.int32(row) for row in range(3)]
    compilations()
    for row in rows:
        slots = insert(slots, row, one)
    assert compilations() == 0
    assert [layer.keys.unsafe_buffer_pointer() for layer in slots.cache.layers] == before
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old.cache))


def test_rows_of_other_batches_or_lengths_are_refused(steps):
    slots = steps.empty_slots(3, 32)
    with pytest.raises(ValueError, match="batch 1 and 32 slots, got batch 2 and 32"):
        slots.with_row(jnp.int32(0), steps.empty_slots(2, 32))
    with pytest.raises(ValueError, match="batch 1 and 32 slots, got batch 1 and 16"):
        slots.with_row(jnp.int32(0), steps.empty_slots(1, 16))


def test_more_room_for_logit_bias_changes_no_token(steps):
    params = [GREEDY, DRAWN, SamplingParams(logit_bias={1: 3.0, 2: -1.0, 9: 2.0})]
    _, ids, _ = steps.decode(begun(steps, PROMPTS, params), 8)
    wide = begun(steps, PROMPTS, params).with_bias_width(16)
    assert wide.sampler.bias.shape == (3, 16) and wide.with_bias_width(2) is wide
    assert steps.decode(wide, 8)[1].tolist() == ids.tolist()


@pytest.mark.parametrize("length", [1, 16, 17, 512, 513, 1100])
def test_prompts_are_padded_to_chunks_and_a_power_of_two(steps, length):
    full, rest = divmod(length, steps.chunk)
    last = next(size for size in (0, 16, 32, 64, 128, 256, 512) if size >= rest)
    assert steps.padded(length) == full * steps.chunk + last


def test_long_prompts_are_computed_in_larger_chunks(steps, monkeypatch):
    """Two large chunks, a usual one, and the rest with padding; the logits are the same."""
    monkeypatch.setattr("rocmforge_jax.generate.steps.LONG_PROMPT", 64)
    sizes, large = [], copy.copy(steps)

    def prefill(cache, piece, *others):
        sizes.append(piece.shape[1])
        return steps.prefill(cache, piece, *others)

    large.chunk, large.long_chunk, large.prefill = 16, 32, prefill
    prompt = np.random.default_rng(0).integers(0, steps.config.vocabulary, 90).tolist()
    logits, _ = large.prefill_prompts([prompt], steps.init_cache(1, 128))
    assert sizes == [32, 32, 16, 16] and large.padded(90) == 96
    assert large.padded(63) == 64
    # Other chunks sum in another order.
    whole, _ = steps.prefill_prompts([prompt], steps.init_cache(1, 128))
    np.testing.assert_allclose(logits, whole, rtol=1e-4, atol=1e-4 * float(np.abs(whole).max()))


def test_the_bytes_of_a_cache_are_those_of_its_arrays(steps):
    assert steps.cache_bytes(3, 64) == steps.init_cache(3, 64).nbytes
    assert steps.cache_bytes(3, 64) == sum(
        array.nbytes for array in arrays(steps.init_cache(3, 64))
    )
