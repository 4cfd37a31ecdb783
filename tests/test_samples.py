"""Several answers to a prompt, the best of them, likeliest tokens, rich streams, ids as prompts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rocmforge_jax as rf
from rocmforge_jax.generate import Engine

pytestmark = pytest.mark.core
PROMPT = "ROMEO:\nWhat light"


@pytest.fixture(scope="module")
def lm():
    return rf.load("demo", progress=False)


def test_samples_are_those_of_one_seed_after_the_other(lm):
    together = lm.generate(PROMPT, n=3, max_tokens=11, seed=5)
    alone = [lm.generate(PROMPT, max_tokens=11, seed=5 + i) for i in range(3)]
    assert [done.ids for done in together] == [done.ids for done in alone]
    for done, other in zip(together, alone):
        np.testing.assert_allclose(done.logprobs, other.logprobs, rtol=1e-4, atol=1e-5)
    params = rf.SamplingParams(seed=5)
    assert lm.generate(PROMPT, n=3, max_tokens=11, params=params) == together
    assert lm.generate(PROMPT, n=1, max_tokens=11, seed=5)[0].ids == alone[0].ids


def test_samples_of_a_list_of_prompts(lm):
    of_prompts = lm.generate(["ROMEO:", "KING"], n=2, max_tokens=5, seed=3)
    flat = [done.ids for completions in of_prompts for done in completions]
    alone = [
        lm.generate(prompt, max_tokens=5, seed=3 + i).ids
        for i, prompt in enumerate(["ROMEO:", "ROMEO:", "KING", "KING"])
    ]
    assert flat == alone


@pytest.mark.parametrize("slots", [None, 1, 2])
def test_a_prompt_is_computed_once_for_its_samples(lm, slots, monkeypatch):
    """Also where its samples enter slots: once for those that enter together."""
    engine, prompt = Engine(lm.model, max_slots=slots), lm.tokenizer.encode(PROMPT)
    computed, original = [], engine.steps.prefill
    monkeypatch.setattr(
        engine.steps,
        "prefill",
        lambda cache, tokens, *rest: computed.append(len(tokens)) or original(cache, tokens, *rest),
    )
    params = [rf.SamplingParams(seed=i) for i in range(4)]
    texts = [[] for _ in params]
    for dispatch in engine.generate([prompt], params, max_tokens=9, samples=4):
        for text, new in zip(texts, dispatch):
            text += new.ids
    assert computed == [1] * {None: 1, 1: 4, 2: 2}[slots]
    assert texts == [lm.generate(PROMPT, max_tokens=9, params=one).ids for one in params]


def test_the_best_come_first(lm):
    drawn = lm.generate(PROMPT, n=5, max_tokens=8, temperature=1.5, seed=2)
    means = [sum(done.logprobs) / len(done.logprobs) for done in drawn]
    assert means == [done.mean_logprob for done in drawn] and means != sorted(means)[::-1]
    best = lm.generate(PROMPT, n=2, best_of=5, max_tokens=8, temperature=1.5, seed=2)
    order = np.argsort([-mean for mean in means])
    assert [done.ids for done in best] == [drawn[i].ids for i in order[:2]]
    one = lm.generate(PROMPT, best_of=5, max_tokens=8, temperature=1.5, seed=2)
    assert one.ids == best[0].ids


def test_top_logprobs_are_those_of_the_decoder(lm):
    done = lm.generate(PROMPT, max_tokens=13, seed=1, top_logprobs=5, logit_bias={7: 3.0})
    prompt = lm.tokenizer.encode(PROMPT)
    graphdef, state = nnx.split(lm.model)
    forward = jax.jit(lambda state, tokens: nnx.merge(graphdef, state)(tokens)[0][0])
    logits = forward(state, jnp.array([prompt + done.ids], jnp.int32))[len(prompt) - 1 : -1]
    logprobs = np.asarray(jax.nn.log_softmax(logits), np.float64)
    assert done.top_logprobs is not None and len(done.top_logprobs) == 13
    for top, truth, id, logprob in zip(done.top_logprobs, logprobs, done.ids, done.logprobs):
        assert list(top) == np.argsort(-truth)[:5].tolist()
        np.testing.assert_allclose(list(top.values()), truth[list(top)], atol=1e-4)
        assert top.get(id, logprob) == pytest.approx(logprob, abs=1e-5)
    assert done.ids == lm.generate(PROMPT, max_tokens=13, seed=1, logit_bias={7: 3.0}).ids
    assert lm.generate(PROMPT, max_tokens=1).top_logprobs is None


@pytest.mark.parametrize("options", [{}, {"stop": ["\n\n", ","]}, {"top_logprobs": 2}], ids=str)
def test_pieces_have_the_tokens_of_the_text(lm, options):
    done = lm.generate(PROMPT, max_tokens=40, seed=4, **options)
    pieces = list(lm.generate(PROMPT, max_tokens=40, seed=4, stream=True, **options))
    assert "".join(pieces) == done.text and all(isinstance(piece, str) for piece in pieces)
    assert [id for piece in pieces for id in piece.ids] == done.ids
    assert [number for piece in pieces for number in piece.logprobs] == done.logprobs
    tops = [piece.top_logprobs for piece in pieces]
    joined = None if tops[0] is None else [top for of_piece in tops for top in of_piece]
    assert joined == done.top_logprobs and (joined is not None) == ("top_logprobs" in options)
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish_reason == done.finish_reason
    assert {piece.index for piece in pieces} == {0}


def test_samples_in_a_stream_have_numbers(lm):
    together = lm.generate(PROMPT, n=3, max_tokens=20, seed=4)
    texts = ["", "", ""]
    for piece in lm.generate(PROMPT, n=3, max_tokens=20, seed=4, stream=True):
        texts[piece.index] += piece
    assert texts == [done.text for done in together]


@pytest.mark.parametrize("kind", [list, tuple, np.array, jnp.array, iter])
def test_ids_are_a_prompt(lm, kind):
    ids = lm.tokenizer.encode(PROMPT, add_special=True)
    expected = lm.generate(PROMPT, max_tokens=6, seed=1)
    assert lm.generate(kind(ids), max_tokens=6, seed=1) == expected
    mixed = lm.generate([kind(ids), PROMPT], max_tokens=6, seed=1)
    assert mixed[0].ids == expected.ids and len(mixed) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n must be .* of at least 1, got 0"),
        ({"n": 3, "best_of": 2}, "best_of must be .* of at least 3, got 2"),
        ({"best_of": 2, "stream": True}, "best_of=2 with stream=True"),
        ({"top_logprobs": -1}, "top_logprobs must be .* from 0 to 1024, got -1"),
        ({"top_logprobs": 5000}, "top_logprobs must be .* from 0 to 1024, got 5000"),
        ({"prompt": [1, 9999]}, "prompt has the id 9999, the vocabulary has 1024"),
        ({"prompt": [3, -1]}, "prompt has the id -1"),
        ({"prompt": [[]]}, "prompt is empty"),
        ({"n": 2, "params": []}, "1 prompts need .* got 0"),
    ],
    ids=str,
)
def test_what_is_refused(lm, options, message):
    with pytest.raises(ValueError, match=message):
        lm.generate(**({"prompt": PROMPT} | options))
