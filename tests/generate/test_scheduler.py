"""Continuous batching: prompts that wait for a slot, slots that are used again, an open queue."""

import jax
import numpy as np
import pytest

from rocmforge_jax.generate import Engine, SamplingParams, Sequence
from rocmforge_jax.models import plan

pytestmark = pytest.mark.core
IDS = np.random.default_rng(1).integers(0, 64, 600).tolist()
#: Prompts of seven sequences, how each is sampled, its max_tokens and its stop tokens.
PROMPTS = [IDS[at : at + n] for at, n in zip(range(0, 350, 50), (3, 40, 17, 1, 30, 16, 9))]
PARAMS = [
    SamplingParams(temperature=0),
    SamplingParams(temperature=3.0, top_k=0, seed=1),
    SamplingParams(temperature=2.0, top_k=9, min_p=0.01, seed=9, repetition_penalty=1.3),
    SamplingParams(temperature=3.0, top_k=0, seed=2, logit_bias={7: 2.0, 9: 1.0, 11: -5.0}),
    SamplingParams(temperature=1.0, typical_p=0.9, seed=3, presence_penalty=0.5),
    SamplingParams(temperature=0, frequency_penalty=0.4),
    SamplingParams(temperature=3.0, top_k=0, seed=2**32 - 1),
]
GREEDY = SamplingParams(temperature=0)
MAX_TOKENS = [5, 40, 1, 17, 24, 8, 33]
STOP_IDS = [{60}, {3, 30}, set(), {1, 2}, set(range(0, 64, 7)), {5}, set()]


@pytest.fixture(scope="module")
def engines(decoder):
    """engines[ahead]: three slots, and so many dispatches that are begun before one is read."""
    return [Engine(decoder, max_slots=3, ahead=ahead) for ahead in range(3)]


@pytest.fixture(scope="module")
def alone(engine):
    """What each of the seven sequences is by itself: (ids, log-probabilities, reason)."""
    return [
        joined(engine.generate([prompt], params, max_tokens=most, stop_ids=stops))[0]
        for prompt, params, most, stops in zip(PROMPTS, PARAMS, MAX_TOKENS, STOP_IDS)
    ]


def joined(dispatches):
    """(ids, log-probabilities, reason) of each prompt."""
    dispatches = list(dispatches)
    return [
        (
            [id for added in each for id in added.ids],
            [logprob for added in each for logprob in added.logprobs],
            each[-1].finish_reason,
        )
        for each in zip(*dispatches)
    ]


def assert_same(texts, expected):
    assert [text[0::2] for text in texts] == [text[0::2] for text in expected]
    for (_, got, _), (_, wanted, _) in zip(texts, expected):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def sequences(engine):
    return [
        Sequence(
            prompt, params, context_length=engine.context_length, max_tokens=most, stop_ids=stops
        )
        for prompt, params, most, stops in zip(PROMPTS, PARAMS, MAX_TOKENS, STOP_IDS)
    ]


@pytest.mark.parametrize("ahead", range(3))
def test_seven_sequences_in_three_slots_are_what_each_is_alone(engines, alone, ahead):
    """With seeds, limits and stop tokens of their own, whichever slot each gets."""
    assert {reason for _, _, reason in alone} == {"stop", "length"}
    engine = engines[ahead]
    scheduler, waiting = engine.open(3, 64), sequences(engine)
    added, order = {one: [] for one in waiting}, list(waiting)
    while not all(one.finish_reason for one in order):
        while waiting and scheduler.free:
            scheduler.admit(waiting.pop(0))
        for one, new in scheduler.step():
            added[one].append(new)
            if new.finish_reason:
                scheduler.release(one)
    texts = [joined([[new] for new in added[one]])[0] for one in order]
    assert_same(texts, alone)
    assert scheduler.free == 3 and scheduler.step() == []


@pytest.mark.parametrize("ahead", range(3))
@pytest.mark.parametrize("max_slots", [1, 3])
def test_a_list_longer_than_the_slots(decoder, engine, ahead, max_slots):
    """The iterator gives each prompt its tokens in order, and nothing while it waits."""
    options = dict(max_tokens=20, stop_ids={7, 30})
    expected = [
        joined(engine.generate([prompt], params, **options))[0]
        for prompt, params in zip(PROMPTS, PARAMS)
    ]
    few = Engine(decoder, max_slots=max_slots, ahead=ahead)
    dispatches = list(few.generate(PROMPTS, PARAMS, **options))
    assert {len(dispatch) for dispatch in dispatches} == {7}
    assert_same(joined(dispatches), expected)
    first = dispatches[0]
    assert first[0].ids and not any(added.ids or added.finish_reason for added in first[1:])


@pytest.mark.parametrize("ahead", range(3))
def test_stopping_a_sequence_frees_its_slot(decoder, engine, ahead):
    """Three take turns in one slot. The first is stopped early, the second before it begins."""
    prompts, few = PROMPTS[:3], Engine(decoder, max_slots=1, ahead=ahead)
    expected = joined(engine.generate([prompts[2]], GREEDY, max_tokens=20))[0]
    generation, dispatches = few.generate(prompts, GREEDY, max_tokens=200), []
    for dispatch in generation:
        dispatches.append(dispatch)
        generation.stop(0)
        generation.stop(1)
        if len([id for each in dispatches for id in each[2].ids]) >= 20:
            generation.close()
    first, second, third = joined(dispatches)
    assert len(first[0]) == 1 and second[0] == []
    assert second[2] == dispatches[-1][0].finish_reason == "stop" and third[2] is None
    assert third[0][:20] == expected[0] and len(dispatches) < 12  # of 200 tokens: 25


@pytest.mark.parametrize("number", [-1, 2, True, "a", 0.0, slice(0, 2), None])
def test_stopping_no_sequence_is_refused(engine, number):
    generation = engine.generate(PROMPTS[:2], GREEDY, max_tokens=3)
    with pytest.raises(ValueError, match="number must be an integer from 0 to 1, got"):
        generation.stop(number)
    assert [len(text[0]) for text in joined(generation)] == [3, 3]
    generation.stop(1)  # has ended
    assert repr(generation) == "<Generation: 2 of 2 sequences ended>"


def test_a_sequence_has_one_slot(engine):
    scheduler, (one, *_) = engine.open(3, 64), sequences(engine)
    with pytest.raises(ValueError, match="in no slot"):
        scheduler.release(one)
    with pytest.raises(ValueError, match="in a slot already"):
        scheduler.admit(one, one)
    scheduler.admit(one)
    with pytest.raises(ValueError, match="in a slot already"):
        scheduler.admit(one)
    assert scheduler.free == 2


@pytest.mark.parametrize("samples", [1, 2])
def test_short_prompts_are_not_padded_to_a_long_one(decoder, engine, samples):
    """Together, three prompts would take 3 * 512 positions; one by one, they take 512 + 2 * 16."""
    prompts, options = [IDS[:9], IDS[9:403], IDS[403:407]], dict(max_tokens=12)
    expected = [joined(engine.generate([prompt], GREEDY, **options))[0] for prompt in prompts]
    other, shapes = Engine(decoder), []
    original = other.steps.prefill

    def watched(cache, tokens_BT, *operands):
        shapes.append(tokens_BT.shape)
        return original(cache, tokens_BT, *operands)

    other.steps.prefill = watched
    texts = joined(other.generate(prompts, GREEDY, samples=samples, **options))
    assert shapes == [(1, 16), (1, 512), (1, 16)]
    assert_same(texts, [text for text in expected for _ in range(samples)])


def test_prompts_that_fit_are_computed_together(decoder):
    engine, batches = Engine(decoder), []
    original = engine.steps.prefill

    def watched(cache, *operands):
        batches.append(cache.batch)
        return original(cache, *operands)

    engine.steps.prefill = watched
    joined(engine.generate(PROMPTS, PARAMS, max_tokens=4))
    assert batches == [7]
    engine.max_slots = 3
    joined(engine.generate(PROMPTS, PARAMS, max_tokens=4))
    assert batches == [7] + [1] * 7


@pytest.mark.parametrize(
    ("sequences_that_fit", "slots"), [(0.5, 1), (1.5, 1), (2.5, 1), (3.5, 2), (6.5, 5), (7.5, 7)]
)
def test_as_many_slots_as_memory_holds(decoder, monkeypatch, sequences_that_fit, slots):
    """One sequence's memory is left for the prompt that enters, unless all prompts fit."""
    engine = Engine(decoder)
    cache = engine.steps.cache_bytes(1, 256)
    workspace = plan.temporary_bytes(engine.config, 256)
    free = workspace + int(sequences_that_fit * cache)
    monkeypatch.setattr(plan, "available_bytes", lambda _: free)
    batches, original = [], engine.steps.decode

    def watched(slots, count):
        batches.append(slots.batch)
        return original(slots, count)

    engine.steps.decode = watched
    texts = joined(engine.generate(PROMPTS, PARAMS, max_tokens=9))
    assert set(batches) == {slots} and [len(ids) for ids, _, _ in texts] == [9] * 7


def test_where_memory_is_unknown_all_prompts_run_together(decoder, monkeypatch):
    engine, (first, *_) = Engine(decoder), PROMPTS
    monkeypatch.setattr(plan, "available_bytes", lambda _: None)
    dispatch = next(engine.generate([first] * 5, max_tokens=3))
    assert [len(added.ids) for added in dispatch] == [1] * 5


def test_a_long_prompt_enters_while_others_go_on(decoder, engine):
    """The cache grows for it, and the sequences that are there lose nothing."""
    prompts, greedy = [IDS[:5], IDS[5:9], IDS[:300]], SamplingParams(temperature=0)
    expected = [joined(engine.generate([p], greedy, max_tokens=40))[0] for p in prompts]
    scheduler = Engine(decoder).open(3, 16)
    order = [Sequence(p, greedy, context_length=2048, max_tokens=40) for p in prompts]
    ids = {one: [] for one in order}
    scheduler.admit(order[0])
    scheduler.admit(order[1])
    for _ in range(4):
        for one, new in scheduler.step():
            ids[one] += new.ids
    assert scheduler.slots.length == 256
    scheduler.admit(order[2])
    assert scheduler.slots.length == 512
    while added := scheduler.step():
        for one, new in added:
            ids[one] += new.ids
    assert [ids[one] for one in order] == [text for text, _, _ in expected]


def test_a_sequence_may_leave_before_it_has_finished(decoder, engine):
    greedy = SamplingParams(temperature=0)
    ((expected, _, _),) = joined(engine.generate([IDS[20:25]], greedy, max_tokens=20))
    scheduler = Engine(decoder, ahead=2).open(1, 64)
    left, entered = (
        Sequence(prompt, greedy, context_length=2048, max_tokens=20)
        for prompt in (IDS[:5], IDS[20:25])
    )
    scheduler.admit(left)
    assert [len(new.ids) for _, new in scheduler.step()] == [1]
    with pytest.raises(ValueError, match="all 1 slots are taken"):
        scheduler.admit(entered)
    scheduler.release(left)
    scheduler.admit(entered)
    ids = []
    while not entered.finish_reason:
        for one, new in scheduler.step():
            assert one is entered
            ids += new.ids
    assert ids == expected and left.finish_reason is None


def test_slots_below_one_are_refused(decoder):
    with pytest.raises(ValueError, match="max_slots .* at least 1, got 0"):
        Engine(decoder, max_slots=0)


def test_entering_and_leaving_compile_nothing_more(decoder, compilations):
    engine = Engine(decoder, max_slots=2)
    prompts = [IDS[:9]] * 5
    joined(engine.generate(prompts, PARAMS[1], max_tokens=20))
    assert compilations() > 0
    joined(engine.generate(prompts + [IDS[:3]], PARAMS[2], max_tokens=13))
    assert compilations() == 0


def test_entering_takes_little_memory(decoder):
    """No second copy of the slots is made where a sequence enters."""
    engine = Engine(decoder, max_slots=2)
    scheduler = engine.open(2, 256)
    for one in sequences(engine)[:2]:
        before = [layer.values.unsafe_buffer_pointer() for layer in scheduler.slots.cache.layers]
        scheduler.admit(one)
        jax.block_until_ready(scheduler.slots)
        after = [layer.values.unsafe_buffer_pointer() for layer in scheduler.slots.cache.layers]
        assert after == before


@pytest.mark.parametrize("read", [1, 3, 8])
def test_an_abandoned_queue_leaves_the_engine_usable(engines, engine, read):
    options = dict(max_tokens=12)
    expected = joined(engine.generate(PROMPTS, PARAMS, **options))
    dispatches = engines[1].generate(PROMPTS, PARAMS, **options)
    for _ in range(read):
        next(dispatches)
    dispatches.close()
    assert_same(joined(engines[1].generate(PROMPTS, PARAMS, **options)), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(max_slots=2.5), "max_slots .* got 2.5"),
        (dict(ahead=-1), "ahead .* got -1"),
    ],
)
def test_options_of_an_engine_are_checked(options, message, decoder):
    with pytest.raises(ValueError, match=message):
        Engine(decoder, **options)


def test_a_warm_up_that_does_not_fit_is_refused(decoder):
    with pytest.raises(ValueError, match="prompt of 16 tokens .* context of 8"):
        Engine(decoder, context_length=8).warm_up()
