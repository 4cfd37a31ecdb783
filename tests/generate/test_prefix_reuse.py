"""Chats with models whose states cannot all be rewound: the same text as if all were computed anew,
but only what is new is computed.
"""

import jax
import numpy as np
import pytest

from rocmforge_jax.generate import Engine, SamplingParams, snapshots
from rocmforge_jax.generate.steps import SMALLEST_BUCKET
from tests.generate.conftest import MIXERS

pytestmark = pytest.mark.core
DRAWN = SamplingParams(temperature=3.0, top_k=0, seed=5)
IDS = np.random.default_rng(7).integers(0, 64, 1200).tolist()
KINDS = list(MIXERS)


@pytest.fixture(scope="module")
def engine_of(decoders):
    """engine_of(kind, ...): a new engine. The compiled steps of a kind are shared."""
    steps = {}

    def engine_of(kind, **options):
        engine = Engine(decoders(kind), **options)
        engine.steps = steps.setdefault(kind, engine.steps)
        return engine

    return engine_of


@pytest.fixture(scope="module")
def fresh(engine_of):
    """fresh(kind, prompt, ...): the answer of an engine that reuses nothing."""
    engines = {kind: engine_of(kind, snapshot_bytes=0) for kind in KINDS}

    def fresh(kind, prompt, **options):
        engines[kind].forget()
        return answered(engines[kind], prompt, **options)

    return fresh


def answered(engine, prompt, **options):
    """(ids, log-probabilities, reason)"""
    steps = [step for (step,) in engine.generate([prompt], DRAWN, **options)]
    ids, logprobs = ([x for step in steps for x in pick(step)] for pick in (_ids, _logprobs))
    return ids, logprobs, steps[-1].finish_reason


def _ids(step):
    return step.ids


def _logprobs(step):
    return step.logprobs


def assert_same(got, expected):
    assert got[0::2] == expected[0::2]
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-4, atol=1e-5)


@pytest.fixture
def counted(monkeypatch):
    """counted(engine, prompt, ...): (tokens of the prompt that were computed, the answer)."""

    def counted(engine, prompt, **options):
        computed, original = [], engine.steps.prefill

        def counting(cache, piece, added, before):
            computed.append(int(added.sum()))
            return original(cache, piece, added, before)

        with monkeypatch.context() as patch:
            patch.setattr(engine.steps, "prefill", counting)
            result = answered(engine, prompt, **options)
        return sum(computed), result

    return counted


def all_rewind(engine):
    return all(state.rewinds for state in engine.steps.init_cache(1, 64).layers)


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_chat_computes_only_what_is_new(engine_of, fresh, counted, kind, ahead):
    """Its cache grows in the second turn; the answers end within a dispatch."""
    engine, text, known = engine_of(kind, ahead=ahead), [], 0
    for new, tokens in ((900, 110), (61, 203), (3, 37), (40, 12)):
        prompt = text + IDS[len(text) : len(text) + new]
        count, got = counted(engine, prompt, max_tokens=tokens)
        assert_same(got, fresh(kind, prompt, max_tokens=tokens))
        # The last token of an answer may be missing in the cache.
        assert len(prompt) - known <= count + 64 and count <= len(prompt) - known + 64
        if known and all_rewind(engine):
            assert count <= len(prompt) - known + 1
        text = prompt + got[0]
        known = len(text)


#: Of a prompt of 600 tokens and an answer of 150: snapshots of a model that has to have them are
#: after the first piece, before and at the end of the prompt, and then every 64 tokens.
TAKEN = [512, 584, 600, 664, 728]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", [9, 30, 512, 520, 590, 600, 640, 700, 745])
def test_an_earlier_message_is_edited(engine_of, fresh, counted, kind, kept):
    engine = engine_of(kind)
    prompt = IDS[:600]
    text = prompt + answered(engine, prompt, max_tokens=150)[0]
    edited = text[:kept] + [(text[kept] + 1) % 64] + IDS[900:950]
    count, got = counted(engine, edited, max_tokens=70)
    assert_same(got, fresh(kind, edited, max_tokens=70))
    before = max([n for n in TAKEN if n <= kept], default=0)
    if all_rewind(engine):
        before = kept if kept >= 16 else 0
    if all_rewind(engine) or kind == "lfm2":
        assert count == len(edited) - before
    assert count <= len(edited) - before
    # Back to the first text: snapshots up to the edit are still good, later ones are of another.
    again = text + IDS[1000:1010]
    count, got = counted(engine, again, max_tokens=9)
    assert_same(got, fresh(kind, again, max_tokens=9))
    assert count <= len(again) - before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("length", "most"), [(600, 16), (590, 6), (599, 15), (520, 8), (100, 100)])
def test_a_prompt_that_is_the_start_of_the_text(engine_of, fresh, counted, kind, length, most):
    """The same prompt for another answer, or an earlier message alone."""
    engine = engine_of(kind)
    answered(engine, IDS[:600], max_tokens=100)
    count, got = counted(engine, IDS[:length], max_tokens=20)
    assert_same(got, fresh(kind, IDS[:length], max_tokens=20))
    assert 1 <= count <= most
    # A ring buffer goes back a few tokens from the snapshot at the end of the prompt.
    if all_rewind(engine) or (kind == "windows" and length >= 590):
        assert count == 1


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dispatches", [1, 2, 11])
def test_an_interrupted_answer_is_continued(engine_of, fresh, counted, kind, ahead, dispatches):
    """Tokens whose dispatch had begun are in the cache, but not in the text."""
    engine, text = engine_of(kind, ahead=ahead), IDS[:600]
    stream = engine.generate([text], DRAWN, max_tokens=200)
    text = text + [id for _ in range(dispatches) for id in next(stream)[0].ids]
    with pytest.raises(KeyboardInterrupt):
        stream.throw(KeyboardInterrupt)
    prompt = text + IDS[700:720]
    count, got = counted(engine, prompt, max_tokens=20)
    assert_same(got, fresh(kind, prompt, max_tokens=20))
    assert count <= 20 + 64


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [1, 5, 67, 90])
def test_a_stop_token_within_a_dispatch(engine_of, fresh, counted, kind, place):
    """The tokens computed past it are not part of the next prompt."""
    engine, prompt = engine_of(kind), IDS[:130]
    ids = fresh(kind, prompt, max_tokens=100)[0]
    place = next(i for i in range(place, 100) if ids[i] not in ids[place - 1 : i])
    stop = ids[place]
    first = ids.index(stop)
    stopped = answered(engine, prompt, max_tokens=100, stop_ids={stop})
    assert stopped[0] == ids[:first] and stopped[2] == "stop"
    longer = prompt + ids[: first + 1] + IDS[300:307]
    count, got = counted(engine, longer, max_tokens=20)
    assert_same(got, fresh(kind, longer, max_tokens=20))
    assert count <= 7 + 64


@pytest.mark.parametrize("kind", KINDS)
def test_two_chats_at_once_do_not_share_snapshots(engine_of, fresh, kind):
    engine, prompts = engine_of(kind), [IDS[:200], IDS[:150] + IDS[300:380]]
    streams = [engine.generate([prompt], DRAWN, max_tokens=100) for prompt in prompts]
    answers = [[], []]
    for steps in zip(*streams):
        for ids, (step,) in zip(answers, steps):
            ids += step.ids
    for prompt, ids in zip(prompts, answers):
        assert ids == fresh(kind, prompt, max_tokens=100)[0]
    for prompt, ids in zip(prompts, answers):
        longer = prompt + ids + [3, 4]
        assert_same(answered(engine, longer, max_tokens=9), fresh(kind, longer, max_tokens=9))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_ragged_batch_are_what_each_is_alone(engine_of, fresh, kind):
    """Padding of the shorter ones never enters a state, whichever piece they end in."""
    prompts = [IDS[:3], IDS[20:560], IDS[100:117], IDS[50:562]]
    dispatches = list(engine_of(kind).generate(prompts, DRAWN, max_tokens=30))
    for row, prompt in enumerate(prompts):
        steps = [dispatch[row] for dispatch in dispatches]
        got = [[x for step in steps for x in pick(step)] for pick in (_ids, _logprobs)]
        assert_same((*got, steps[-1].finish_reason), fresh(kind, prompt, max_tokens=30))


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_enters_a_used_slot_is_what_it_is_alone(engine_of, fresh, kind, ahead):
    """A free slot is computed with the others, so its state is garbage until a row enters."""
    engine = engine_of(kind, max_slots=2, ahead=ahead)
    prompts = [IDS[at : at + n] for at, n in ((0, 3), (40, 40), (90, 17), (120, 1), (150, 70))]
    texts = [([], []) for _ in prompts]
    reasons = [None] * len(prompts)
    for dispatch in engine.generate(prompts, DRAWN, max_tokens=41, stop_ids={9, 30}):
        for i, step in enumerate(dispatch):
            texts[i][0].extend(step.ids)
            texts[i][1].extend(step.logprobs)
            reasons[i] = step.finish_reason
    for prompt, text, reason in zip(prompts, texts, reasons):
        assert_same((*text, reason), fresh(kind, prompt, max_tokens=41, stop_ids={9, 30}))


def test_no_snapshot_where_every_state_rewinds(engine_of, monkeypatch):
    """No copy, and no more pieces than before."""
    engine, pieces = engine_of("attention"), []
    original = engine.steps.prefill
    monkeypatch.setattr(snapshots, "_copied", None)

    def recording(cache, piece, added, before):
        pieces.append(piece.shape)
        return original(cache, piece, added, before)

    monkeypatch.setattr(engine.steps, "prefill", recording)
    ids = answered(engine, IDS[:600], max_tokens=150)[0]
    answered(engine, IDS[:600] + ids + IDS[:100], max_tokens=9)
    assert pieces == [(1, 512), (1, 128), (1, 128)]


def test_snapshots_stay_within_their_bytes(engine_of, fresh, counted, monkeypatch):
    """Three fit: the one before the end of the prompt, the newest, and one of the others."""
    size = 2 * 2 * 32 * 4
    engine, largest, original = (
        engine_of("lfm2", snapshot_bytes=4 * size - 1),
        [],
        snapshots._copied,
    )
    prompt = IDS[:600]

    def copied(states, length):
        largest.append(sum(array.nbytes for array in jax.tree.leaves(states)))
        return original(states, length)

    monkeypatch.setattr(snapshots, "_copied", copied)
    text = prompt + answered(engine, prompt, max_tokens=150)[0]
    assert largest == [size] * len(TAKEN)
    _, known, kept = engine.prefix_cache.take(text + [1])
    assert (known, kept.lengths, kept.nbytes) == (728, [512, 584, 728], 3 * size)


def test_a_snapshot_that_is_too_large_is_said_once(engine_of, fresh, counted):
    size = 2 * 2 * 32 * 4
    engine = engine_of("lfm2", snapshot_bytes=size - 1)
    with pytest.warns(UserWarning, match=f"{size} bytes.* {size - 1}"):
        ids = answered(engine, IDS[:100], max_tokens=70)[0]
    longer = IDS[:100] + ids + [5]
    count, got = counted(engine, longer, max_tokens=9)  # a warning would be an error
    assert count == len(longer)
    assert_same(got, fresh("lfm2", longer, max_tokens=9))


@pytest.mark.parametrize("value", [-1, 1.5, "512M"])
def test_other_bounds_are_refused(engine_of, value):
    with pytest.raises(ValueError, match=f"snapshot_bytes.*at least 0.*{value}"):
        engine_of("attention", snapshot_bytes=value)


@pytest.mark.parametrize(
    ("free", "most"), [(None, 2**29), (2**40, 2**29), (10**9 + 9, 10**8), (-5, 0)]
)
def test_the_default_bound(engine_of, monkeypatch, free, most):
    monkeypatch.setattr(snapshots, "available_bytes", lambda _: free)
    assert engine_of("attention").snapshot_bytes == most


def test_a_prompt_with_a_last_piece_of_its_own_needs_no_more_room(engine_of):
    """The pieces are written one behind the other, each with its padding."""
    steps = engine_of("attention").steps
    for length in range(65, 1200):
        begin, need = 0, 0
        for part in (length - SMALLEST_BUCKET, SMALLEST_BUCKET):
            for count, padded in steps._pieces(part):
                need, begin = max(need, begin + padded), begin + count
        assert begin == length and need <= steps.padded(length)
