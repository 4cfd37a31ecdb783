"""What the engine keeps from one text to the next, and what it survives."""

import gc

import jax
import pytest

import rocmforge_jax
from rocmforge_jax.generate import SamplingParams
from rocmforge_jax.locate import DEMO

GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture(scope="module")
def lm():
    return rocmforge_jax.load(DEMO)


@pytest.fixture
def engine(lm):
    lm.engine.forget()
    yield lm.engine
    lm.engine.forget()


def generated(engine, prompt, tokens=20, params=GREEDY):
    return [
        id for (step,) in engine.generate([prompt], params, max_tokens=tokens) for id in step.ids
    ]


def prefilled(engine, monkeypatch, prompt, tokens=4):
    """The tokens of a prompt that were really computed."""
    counted, original = [], engine.steps.prefill

    def counting(cache, piece, added, before):
        counted.append(int(added.sum()))
        return original(cache, piece, added, before)

    with monkeypatch.context() as patch:
        patch.setattr(engine.steps, "prefill", counting)
        ids = generated(engine, prompt, tokens)
    return sum(counted), ids


@pytest.mark.core
def test_a_conversation_goes_on_from_the_cache(lm, engine, monkeypatch):
    prompt = lm.tokenizer.encode(
        "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n"
    )
    longer = (
        prompt
        + generated(engine, prompt)
        + lm.tokenizer.encode("\n\nFirst Citizen:\nYou are all resolved?")
    )
    count, continued = prefilled(engine, monkeypatch, longer)
    # All but the last token of the answer was in the cache.
    assert count <= len(longer) - len(prompt) - 19
    engine.forget()
    count, fresh = prefilled(engine, monkeypatch, longer)
    assert count == len(longer) and continued == fresh


def test_a_text_that_departs_is_computed_from_there_on(lm, engine, monkeypatch):
    prompt = list(range(40, 100))
    generated(engine, prompt)
    other = prompt[:30] + [7] * 25
    count, ids = prefilled(engine, monkeypatch, other)
    assert count == len(other) - 30
    engine.forget()
    assert ids == generated(engine, other, 4)


def test_the_same_prompt_again_computes_its_last_token_only(engine, monkeypatch):
    prompt = list(range(40, 100))
    first = generated(engine, prompt, 4)
    assert prefilled(engine, monkeypatch, prompt) == (1, first)


def test_a_short_or_another_beginning_is_computed_anew(engine, monkeypatch):
    generated(engine, list(range(40, 100)))
    assert prefilled(engine, monkeypatch, list(range(41, 100)))[0] == 59
    generated(engine, [5, 6, 7])
    assert prefilled(engine, monkeypatch, [5, 6, 7, 8])[0] == 4


@pytest.mark.core
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_answer_leaves_the_model_usable(engine, error):
    prompt = list(range(40, 100))
    expected = generated(engine, prompt, 30)
    steps = engine.generate([prompt], GREEDY, max_tokens=30)
    next(steps)
    with pytest.raises(error):
        steps.throw(error)
    assert generated(engine, prompt, 30) == expected


def test_an_interrupt_inside_a_dispatch_leaves_the_model_usable(engine, monkeypatch):
    prompt = list(range(40, 100))
    expected = generated(engine, prompt, 30)
    original = engine.steps.decode

    def interrupted(*arguments):
        original(*arguments)  # the cache has been given away, the result is lost
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine.steps, "decode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            generated(engine, prompt, 30)
    assert generated(engine, prompt, 30) == expected


def test_two_answers_at_once_do_not_disturb_each_other(engine):
    prompts = [list(range(40, 100)), list(range(60, 90))]
    expected = [generated(engine, prompt, 30) for prompt in prompts]
    streams = [engine.generate([prompt], GREEDY, max_tokens=30) for prompt in prompts]
    ids = [[], []]
    for steps in zip(*streams):
        for own, (step,) in zip(ids, steps):
            own += step.ids
    assert ids == expected


def test_warm_up_compiles_what_an_answer_needs():
    lm = rocmforge_jax.load(DEMO)
    lm.warm_up(len(lm.tokenizer.encode("But soft, what light")))
    programs = (lm.engine.steps.prefill, lm.engine.steps.decode)
    sizes = [program.jitted._cache_size() for program in programs]
    lm.generate("But soft, what light", max_tokens=20)
    assert [program.jitted._cache_size() for program in programs] == sizes and min(sizes) == 1


@pytest.mark.core
def test_deleting_a_model_frees_its_memory():
    gc.collect()
    before = sum(array.nbytes for array in jax.live_arrays())
    lm = rocmforge_jax.load(DEMO)
    lm.generate("ROMEO:", max_tokens=4)
    held = sum(array.nbytes for array in jax.live_arrays()) - before
    assert held > 2_000_000
    del lm
    gc.collect()
    assert sum(array.nbytes for array in jax.live_arrays()) - before < 0.01 * held
