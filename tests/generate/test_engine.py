"""Token ids in, token ids out: exact counts and reasons, prompts of any length, batches, seeds,
what is refused.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rocmforge_jax.generate import Engine, SamplingParams
from rocmforge_jax.nn import Cache

GREEDY = SamplingParams(temperature=0)
DRAWN = SamplingParams(temperature=3.0, top_k=0, top_p=1.0, min_p=0.0, seed=5)
IDS = np.random.default_rng(0).integers(0, 64, 1200).tolist()


@pytest.fixture(scope="module")
def short(decoder):
    """An engine whose context holds 32 tokens."""
    return Engine(decoder, context_length=32)


@pytest.fixture(scope="module")
def one_pass(decoder):
    """one_pass(ids): logits without a cache [1200, V].

    The ids are filled up, which changes nothing before.
    """
    graphdef, state = nnx.split(decoder)
    run = jax.jit(lambda state, tokens: nnx.merge(graphdef, state)(tokens)[0][0])
    return lambda ids: np.asarray(run(state, jnp.array([ids + [0] * (1200 - len(ids))], jnp.int32)))


@pytest.fixture(scope="module")
def whole(one_pass):
    return one_pass(IDS)


@pytest.mark.parametrize(
    "length",
    [pytest.param(n, marks=pytest.mark.core) for n in (1, 16, 17, 513)] + [15, 511, 512, 1100],
)
def test_prompts_of_any_length(engine, answer, whole, length):
    """Buckets and pieces of a prompt change nothing: the logits and the first token are those of
    one pass.
    """
    logits_BV, cache = engine.prefill([IDS[:length]])
    expected = whole[length - 1]
    assert np.linalg.norm(logits_BV[0] - expected) < 1e-5 * np.linalg.norm(expected)
    assert cache.lengths_B.tolist() == [length]
    ids, logprobs, _ = answer(engine, IDS[:length], GREEDY, max_tokens=1)
    assert ids == [int(expected.argmax())]
    np.testing.assert_allclose(
        logprobs, [expected.max() - np.log(np.exp(expected.astype(np.float64)).sum())], rtol=1e-5
    )


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda engine: engine.prefill([]), "at least one prompt, got none"),
        (lambda engine: engine.prefill([[]]), "prompt is empty"),
        (lambda engine: engine.prefill([[1], [99999]]), "prompt 1 has the id 99999, .* has 64"),
        (lambda engine: engine.prefill([[2**70]]), f"prompt has the id {2**70}, .* has 64"),
        (lambda engine: engine.prefill([[1] * 32]), "prompt has 32 tokens, the context is 32"),
        (lambda engine: engine.score([1, 2, 3]), r"integers \[B, T\], got int64 \[3\]"),
        (lambda engine: engine.score([[1.5, 2.0]]), "integers .* got float64"),
        (lambda engine: engine.score([[1, 99999]]), "ids has the id 99999"),
        (lambda engine: engine.score([[1, -1]]), "ids has the id -1"),
        (lambda engine: engine.score([[1]]), r"from 2 to 32 tokens each, .* got \[1, 1\]"),
        (lambda engine: engine.score([[1] * 33]), r"from 2 to 32 tokens each, .* got \[1, 33\]"),
        (lambda engine: engine.score([[1, 2, 3]], first=2), "first .* from 0 to 1, got 2"),
    ],
)
def test_prefill_and_score_check_ids(short, call, message):
    with pytest.raises(ValueError, match=message):
        call(short)


@pytest.mark.core
@pytest.mark.parametrize(("prompt", "count"), [(5, 20), (240, 30)])
def test_greedy_text_is_the_argmax_of_what_came_before(engine, answer, one_pass, prompt, count):
    """Also where the cache grows meanwhile: the one kept from 230 tokens has 256 slots, 240 and 30
    need more.
    """
    engine.forget()
    answer(engine, IDS[:225], GREEDY, max_tokens=5)
    ids, _, _ = answer(engine, IDS[:prompt], GREEDY, max_tokens=count)
    logits = one_pass(IDS[:prompt] + ids)
    assert ids == logits[prompt - 1 : prompt - 1 + count].argmax(axis=-1).tolist()


@pytest.mark.core
@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 10, 17, 25])
def test_max_tokens_is_exact(engine, answer, count):
    ids, logprobs, reason = answer(engine, IDS[:5], DRAWN, max_tokens=count)
    assert (len(ids), len(logprobs), reason) == (count, count, "length")
    assert ids == answer(engine, IDS[:5], DRAWN, max_tokens=25)[0][:count]


@pytest.mark.core
@pytest.mark.parametrize("place", [0, 1, 4, 8, 9, 12])
def test_a_stop_token_ends_the_text_and_is_no_part_of_it(engine, answer, place):
    ids, logprobs, _ = answer(engine, IDS[:5], DRAWN, max_tokens=20)
    first = ids.index(ids[place])
    stopped = answer(engine, IDS[:5], DRAWN, max_tokens=20, stop_ids={ids[place]})
    assert stopped == (ids[:first], logprobs[:first], "stop")


@pytest.mark.core
@pytest.mark.parametrize("count", [1, 4, 9])
def test_a_stop_token_after_the_last_is_not_seen(engine, answer, count):
    """Whether it was computed in the same dispatch makes no difference."""
    ids = answer(engine, IDS[:5], DRAWN, max_tokens=20)[0]
    assert ids[count] not in ids[:count]
    assert answer(engine, IDS[:5], DRAWN, max_tokens=count, stop_ids={ids[count]})[2] == "length"


@pytest.mark.core
@pytest.mark.parametrize(
    ("prompt", "max_tokens", "count", "reason"),
    [
        (5, None, 27, "context"),
        (5, 100, 27, "context"),
        (5, 27, 27, "length"),
        (24, 8, 8, "length"),
        (31, None, 1, "context"),
        (31, 1, 1, "length"),
    ],
)
def test_a_full_context(short, answer, prompt, max_tokens, count, reason):
    ids, _, why = answer(short, IDS[:prompt], DRAWN, max_tokens=max_tokens)
    assert (len(ids), why) == (count, reason)


@pytest.mark.core
def test_equal_seeds_give_equal_text_and_others_do_not(engine, answer):
    def drawn(seed):
        return answer(
            engine, IDS[:5], SamplingParams(temperature=3.0, top_k=0, seed=seed), max_tokens=12
        )[0]

    texts = [drawn(seed) for seed in (0, 0, 1, 2**32 - 1)]
    assert texts[0] == texts[1]
    assert len({tuple(text) for text in texts}) == 3


@pytest.mark.core
def test_a_sequence_alone_and_in_a_batch(engine, answer):
    """Prompts with lengths, parameters and ends of their own: each is what it is alone."""
    prompts = [IDS[:3], IDS[20:60], IDS[100:117]]
    params = [
        DRAWN,
        GREEDY,
        SamplingParams(temperature=2.0, top_k=9, min_p=0.01, seed=9, repetition_penalty=1.3),
    ]
    alone = [
        answer(engine, prompt, one, max_tokens=15, stop_ids={7, 30})
        for prompt, one in zip(prompts, params)
    ]
    together = [([], [], None)] * 3
    for dispatch in engine.generate(prompts, params, max_tokens=15, stop_ids={7, 30}):
        together = [
            (ids + new.ids, logprobs + new.logprobs, new.finish_reason)
            for (ids, logprobs, _), new in zip(together, dispatch)
        ]
    assert [text[0::2] for text in together] == [text[0::2] for text in alone]
    for (_, got, _), (_, expected, _) in zip(together, alone):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.core
def test_a_conversation_that_goes_on_is_that_computed_anew(engine, answer):
    """The kept cache saves the tokens that are the same.

    One that differs in the middle, or an abandoned text, changes nothing.
    """
    ids, _, _ = answer(engine, IDS[:20], GREEDY, max_tokens=20)
    longer, other = IDS[:20] + ids + IDS[40:45], IDS[:20] + ids[:4] + IDS[60:70]
    expected = []
    for prompt in (longer, other, longer[:30], IDS[:20]):
        engine.forget()
        expected.append(answer(engine, prompt, GREEDY, max_tokens=12)[0])
    next(iter(engine.generate([longer], GREEDY, max_tokens=30)))
    assert [
        answer(engine, prompt, GREEDY, max_tokens=12)[0]
        for prompt in (longer, other, longer[:30], IDS[:20])
    ] == expected


@pytest.fixture(scope="module")
def ahead(decoder):
    """ahead[n]: an engine that begins n dispatches before it reads."""
    return [Engine(decoder, ahead=count) for count in range(3)]


def together(engine, prompts, **options):
    """(ids, reason) of each prompt, and what each dispatch added."""
    dispatches = list(engine.generate(prompts, [DRAWN, GREEDY][: len(prompts)], **options))
    texts = [
        ([id for dispatch in dispatches for id in dispatch[i].ids], dispatches[-1][i].finish_reason)
        for i in range(len(prompts))
    ]
    return texts, dispatches


@pytest.mark.core
@pytest.mark.parametrize("count", [1, 8, 9, 13, 25])
@pytest.mark.parametrize("prompts", [[IDS[:5]], [IDS[:5], IDS[20:40]]], ids=["one", "two"])
def test_dispatches_begun_ahead_change_nothing(ahead, prompts, count):
    """Not what one dispatch after the other gives, nor how many there are."""
    expected = together(ahead[0], prompts, max_tokens=count)
    assert [(len(ids), reason) for ids, reason in expected[0]] == [(count, "length")] * len(prompts)
    for engine in ahead[1:]:
        assert together(engine, prompts, max_tokens=count) == expected


@pytest.mark.core
@pytest.mark.parametrize("place", [0, 3, 8, 12])
def test_a_stop_token_with_dispatches_begun_ahead(ahead, place):
    """One of two sequences ends there; the other goes on."""
    prompts = [IDS[:5], IDS[20:40]]
    (free, _), _ = together(ahead[0], prompts, max_tokens=20)[0]
    expected = together(ahead[0], prompts, max_tokens=20, stop_ids={free[place]})
    assert expected[0][0] == (free[: free.index(free[place])], "stop")
    for engine in ahead[1:]:
        assert together(engine, prompts, max_tokens=20, stop_ids={free[place]}) == expected


@pytest.mark.core
@pytest.mark.parametrize("read", [1, 2, 3])
def test_nothing_is_lost_where_dispatches_begun_ahead_are_abandoned(ahead, answer, read):
    """The kept cache holds tokens that were never read: the text goes on as it would have."""
    for engine in ahead:
        engine.forget()
        whole = answer(engine, IDS[:20], GREEDY, max_tokens=40)[0]
        engine.forget()
        dispatches = engine.generate([IDS[:20]], GREEDY, max_tokens=40)
        begun = [id for _ in range(read) for id in next(dispatches)[0].ids]
        dispatches.close()
        assert begun == whole[: len(begun)] and len(begun) == 1 + 8 * (read - 1)
        # What was read is not computed again.
        assert engine.prefix_cache.common(IDS[:20] + whole) >= 20 + len(begun) - 1
        assert (
            answer(engine, IDS[:20] + begun, GREEDY, max_tokens=40 - len(begun))[0]
            == whole[len(begun) :]
        )
        assert answer(engine, IDS[:20], GREEDY, max_tokens=40)[0] == whole


@pytest.mark.core
@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "needs at least one prompt, got none"),
        ([[1], []], {}, "prompt 1 is empty: generation needs at least one token"),
        ([[1], IDS[:32]], {}, "prompt 1 has 32 tokens, the context is 32"),
        ([[1, 64]], {}, "prompt has the id 64, the vocabulary has 64"),
        ([[1, -1]], {}, "prompt has the id -1, the vocabulary has 64"),
        ([[1.5]], {}, "prompt must be token ids, integers, got float64"),
        ([[True]], {}, "prompt must be token ids, integers, got bool"),
        (["text"], {}, "prompt must be token ids, integers, got <U4, 0 axes"),
        ([1, 2], {}, "prompt 0 must be token ids, integers, got int64, 0 axes"),
        ([[[1]]], {}, "prompt must be token ids, integers, got int64, 2 axes"),
        ([[1]], {"stop_ids": [1.0]}, "a stop id must be an integer of at least 0, got 1.0"),
        ([[1]], {"stop_ids": [-1]}, "a stop id must be an integer of at least 0, got -1"),
        ([[1]], {"params": [{"seed": 1}]}, r"params must be SamplingParams, got \{'seed': 1\}"),
        ([[1]], {"params": {"seed": 1}}, "params must be SamplingParams, got 'seed'"),
        ([[1]], {"max_tokens": 0}, "max_tokens must be an integer of at least 1, got 0"),
        ([[1]], {"max_tokens": 2.5}, "max_tokens must be an integer of at least 1, got 2.5"),
        ([[1]], {"max_tokens": True}, "max_tokens must be an integer of at least 1, got True"),
        ([[1], [2]], {"params": [GREEDY]}, "2 prompts need as many sampling parameters, got 1"),
        (
            [[1]],
            {"params": SamplingParams(logit_bias={3: 1.0, 64: -1.0})},
            "logit_bias has the id 64, the vocabulary has 64",
        ),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_computed(short, prompts, options, message):
    """At the call, not at the first dispatch."""
    with pytest.raises(ValueError, match=message):
        short.generate(prompts, **options)


@pytest.fixture(scope="module")
def muted(decoder):
    """An engine that never generates the upper half of the vocabulary, nor the tokens 3 and 5."""
    return Engine(decoder, suppressed_ids={3, 5, *range(32, 64)})


@pytest.mark.core
@pytest.mark.parametrize("temperature", [0, 3.0])
def test_suppressed_tokens_are_never_generated(muted, engine, answer, temperature):
    """Not even with a bias; log-probabilities are those of the model, without renormalising."""
    params = SamplingParams(temperature=temperature, top_k=0, top_p=1, min_p=0, logit_bias={3: 9})
    ids, logprobs, _ = answer(muted, IDS[:9], params, max_tokens=60)
    assert not muted.suppressed_ids & set(ids) and len(ids) == 60
    assert muted.suppressed_ids & set(answer(engine, IDS[:9], params, max_tokens=60)[0])
    scores = engine.score(np.array([IDS[:9] + ids], np.int32), 8)[0]
    # Two programs add the same float32 numbers in another order.
    np.testing.assert_allclose(logprobs, scores, rtol=1e-4, atol=1e-5)


@pytest.mark.core
def test_suppressed_tokens_in_a_batch_and_for_prompts_that_wait(decoder, muted, answer):
    params = SamplingParams(temperature=3.0, top_k=0, top_p=1, min_p=0, seed=4)
    alone = answer(muted, IDS[:9], params, max_tokens=20)[0]
    waiting = Engine(decoder, suppressed_ids=muted.suppressed_ids, max_slots=1)
    for engine in (muted, waiting):
        dispatches = list(engine.generate([IDS[:5], IDS[:9]], params, max_tokens=20))
        for row in range(2):
            ids = [id for dispatch in dispatches for id in dispatch[row].ids]
            assert not muted.suppressed_ids & set(ids)
        assert ids == alone


@pytest.mark.core
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([64], "a suppressed id must be an integer from 0 to 63, got 64"),
        ([-1], "a suppressed id must be an integer from 0 to 63, got -1"),
        (range(64), "suppressed_ids are all 64 tokens"),
    ],
)
def test_suppressed_ids_out_of_range(decoder, ids, message):
    with pytest.raises(ValueError, match=message):
        Engine(decoder, suppressed_ids=ids)


@pytest.mark.core
def test_biases_that_ban_all_tokens_are_refused(engine, muted, answer):
    def banned(ids):
        return SamplingParams(logit_bias=dict.fromkeys(ids, -np.inf))

    with pytest.raises(ValueError, match="logit_bias bans all 64 tokens"):
        engine.generate([[1]], banned(range(64)))
    with pytest.raises(ValueError, match="logit_bias 1 bans all 30 tokens"):
        muted.generate([[1], [1]], [SamplingParams(), banned(range(32))])
    assert answer(engine, [1], banned(range(63)), max_tokens=3)[0] == [63] * 3
    assert answer(muted, [1], banned(range(1, 64)), max_tokens=3)[0] == [0] * 3


@pytest.mark.core
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_logits_that_are_no_numbers_end_the_text_with_an_error(decoder, answer, temperature):
    broken = nnx.clone(decoder)
    broken.output_norm.scale = nnx.Param(decoder.output_norm.scale.get_value() * jnp.nan)
    with pytest.raises(FloatingPointError, match="after 4 tokens are not numbers"):
        answer(Engine(broken), IDS[:4], SamplingParams(temperature=temperature), max_tokens=9)


@pytest.mark.core
def test_context_lengths(decoder):
    with pytest.raises(
        ValueError, match="context_length must be an integer from 2 to 2147482624, got 1"
    ):
        Engine(decoder, context_length=1)
    with pytest.warns(
        UserWarning,
        match="a context of 4096 tokens is longer than the 2048 the model was trained for",
    ) as caught:
        Engine(decoder, context_length=4096)
    assert caught[0].filename == __file__


@pytest.mark.core
def test_scores_are_log_probabilities_of_the_text(engine, whole):
    ids = np.array([IDS[:40]], np.int32)
    logits = whole[:39].astype(np.float64)
    expected = logits[np.arange(39), ids[0, 1:]] - np.log(np.exp(logits).sum(axis=-1))
    np.testing.assert_allclose(engine.score(ids)[0], expected, rtol=1e-5)
    np.testing.assert_allclose(engine.score(ids, first=30)[0], expected[30:], rtol=1e-5)


@pytest.mark.core
def test_prefill_gives_the_cache_of_the_prompts(engine):
    _, cache = engine.prefill([IDS[:3], IDS[:20]])
    assert isinstance(cache, Cache) and cache.batch == 2 and cache.lengths_B.tolist() == [3, 20]
