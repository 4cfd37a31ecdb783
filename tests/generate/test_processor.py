"""Logits processors: what they forbid and force, their states in slots, and their errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rocmforge_jax.generate import Engine, LogitsProcessor, SamplingParams
from rocmforge_jax.generate.sequence import Sequence

pytestmark = pytest.mark.core
V = 64
GREEDY = SamplingParams(temperature=0)
DRAWN = SamplingParams(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=7)
PREFIX = jnp.array([11, 3, 60, 3, 7, 29, 2, 41, 5, 6, 33], jnp.int32)
#: A finite automaton over ids: state -> which of the classes id % 3 are allowed, and where to go.
ALLOWED = jnp.array([[True, False, False], [False, True, True], [False, False, True]])
NEXT = jnp.array([[1, 0, 0], [0, 2, 1], [0, 0, 0]], jnp.int32)


@jax.vmap
def no_repeated_trigrams(tokens, length, logits, state):
    """Bans each token that would end a trigram that is there already."""
    first, second, third = tokens[:-2], tokens[1:-1], tokens[2:]
    same = (first == tokens[length - 2]) & (second == tokens[length - 1]) & (third >= 0)
    banned = jnp.zeros(logits.shape, bool).at[jnp.where(same, third, V)].set(True, mode="drop")
    return jnp.where(banned & (length > 1), -jnp.inf, logits), state


@jax.vmap
def forced_prefix(tokens, length, logits, place):
    wanted = PREFIX[jnp.minimum(place, len(PREFIX) - 1)]
    forced = jnp.where(jnp.arange(V) == wanted, logits, -jnp.inf)
    return jnp.where(place < len(PREFIX), forced, logits), place + 1


@jax.vmap
def automaton(tokens, length, logits, state):
    """The state is the automaton's, and whether it has begun: the prompt is not part of it."""
    at, begun = state["at"], state["begun"]
    at = jnp.where(begun, NEXT[at, tokens[length - 1] % 3], at)
    allowed = ALLOWED[at][jnp.arange(V) % 3]
    return jnp.where(allowed, logits, -jnp.inf), {"at": at, "begun": jnp.ones_like(begun)}


AUTOMATON = LogitsProcessor(automaton, {"at": 0, "begun": False})


def trigrams(ids):
    return list(zip(ids, ids[1:], ids[2:]))


def accepted(ids, at=0):
    for id in ids:
        if not ALLOWED[at, id % 3]:
            return False
        at = int(NEXT[at, id % 3])
    return True


def test_trigrams_are_not_repeated(engine, answer):
    prompt = [5, 6, 5, 6, 5]
    narrow = {id: -np.inf for id in range(4, V)}  # of four tokens, repeats come soon
    params = SamplingParams(temperature=1.0, top_k=0, logit_bias=narrow, seed=3)
    free = answer(engine, prompt, params, max_tokens=40)[0]
    found = trigrams(prompt + free)
    assert len(set(found)) < len(found)
    ids = answer(engine, prompt, params, max_tokens=40, logits_processor=no_repeated_trigrams)[0]
    later = trigrams(prompt + ids)[len(prompt) - 2 :]
    assert len(set(later)) == len(later) == 40 and not set(later) & set(trigrams(prompt))


def test_a_prefix_is_forced_and_its_logprobs_are_the_models(engine, answer):
    forced = LogitsProcessor(forced_prefix, 0)
    ids, logprobs, _ = answer(engine, [1, 2], GREEDY, max_tokens=20, logits_processor=forced)
    assert ids[: len(PREFIX)] == PREFIX.tolist()
    scored = engine.score(np.array([[1, 2, *ids]]), 1)[0]
    np.testing.assert_allclose(logprobs, scored, rtol=1e-4, atol=1e-5)
    # After it, the text is what the model says without the processor.
    rest, _, _ = answer(engine, [1, 2, *PREFIX.tolist()], GREEDY, max_tokens=9)
    assert ids[len(PREFIX) :] == rest


def test_an_automaton_accepts_what_is_generated(engine, answer):
    free = answer(engine, [9], DRAWN, max_tokens=50)[0]
    assert not accepted(free)
    ids = answer(engine, [9], DRAWN, max_tokens=50, logits_processor=AUTOMATON)[0]
    assert len(ids) == 50 and accepted(ids)


def test_states_enter_and_leave_slots_with_their_sequences(decoder):
    """Two slots for five sequences that begin in different states: each as if alone."""
    states = [0, 1, 2, 1, 0]
    each = [LogitsProcessor(automaton, {"at": at, "begun": False}) for at in states]
    prompts = [[7, 8, 9][: 1 + i % 3] + [i] for i in range(5)]
    params = [SamplingParams(temperature=2.0, top_k=0, seed=i) for i in range(5)]
    narrow = Engine(decoder, max_slots=2)
    texts = [[] for _ in prompts]
    for dispatch in narrow.generate(prompts, params, max_tokens=21, logits_processor=each):
        for text, new in zip(texts, dispatch):
            text += new.ids
    alone = Engine(decoder)
    for i, text in enumerate(texts):
        steps = alone.generate([prompts[i]], params[i], max_tokens=21, logits_processor=each[i])
        assert text == [id for (step,) in steps for id in step.ids]
        assert accepted(text, states[i])


def test_the_tokens_so_far_grow_with_the_cache(engine, answer):
    """Beyond 256 slots: the function still sees the whole text."""
    seen = answer(engine, list(range(60)) * 4, GREEDY, max_tokens=30, logits_processor=count_up)[0]
    assert seen == [(240 + i) % V for i in range(30)]


@jax.vmap
def count_up(tokens, length, logits, state):
    """Forces the number of tokens so far."""
    counted = (tokens >= 0).sum() % V
    return jnp.where(jnp.arange(V) == counted, 0.0, -jnp.inf).astype(jnp.float32), state


def test_the_same_function_compiles_once(engine, compilations):
    def run(seed, at):
        state = {"at": at, "begun": False}
        processor = LogitsProcessor(automaton, state)
        params = SamplingParams(temperature=1.0, seed=seed)
        list(engine.generate([[3, 4]], params, max_tokens=12, logits_processor=processor))

    run(0, 0)
    compilations()
    for seed in range(1, 4):
        run(seed, seed % 3)
    assert compilations() == 0


@pytest.mark.parametrize(
    ("function", "state", "message"),
    [
        (lambda t, n, x, s: x, 0, "must return .logits, state., got "),
        (lambda t, n, x, s: (x[:, :-1], s), 0, r"logits .* float32 \[1, 64\], got .* \[1, 63\]"),
        (lambda t, n, x, s: (x.astype(jnp.bfloat16), s), 0, r"float32 \[1, 64\], got bfloat16"),
        (lambda t, n, x, s: (x, s[0]), np.zeros(3), r"state .* \[1, 3\], got .* \[3\]"),
        (
            lambda t, n, x, s: (x, s.astype(jnp.float32)),
            1,
            r"state .* int32 \[1\], got float32 \[1\]",
        ),
        (lambda t, n, x, s: (x, {"b": s["a"]}), {"a": 1}, "state .* structure .*'a'.*'b'"),
    ],
)
def test_what_a_processor_must_not_return(engine, function, state, message):
    with pytest.raises(ValueError, match=message):
        engine.generate([[1]], logits_processor=LogitsProcessor(function, state))


def test_a_processor_that_leaves_no_token(engine):
    @jax.vmap
    def ban_all_after(tokens, length, logits, state):
        return jnp.where(length < 5, logits, -jnp.inf), state

    steps = engine.generate([[1, 2]], GREEDY, max_tokens=9, logits_processor=ban_all_after)
    with pytest.raises(ValueError, match="no token to choose after 5 tokens"):
        list(steps)


def test_what_is_no_processor(engine):
    with pytest.raises(TypeError, match="list of them, got 5"):
        engine.generate([[1]], logits_processor=5)
    with pytest.raises(TypeError, match="must be a function, got int 5"):
        LogitsProcessor(5)
    with pytest.raises(ValueError, match="2 prompts need as many .* got 1"):
        engine.generate([[1], [2]], logits_processor=[AUTOMATON])
    with pytest.raises(ValueError, match="2 prompts have 2 functions"):
        engine.generate([[1], [2]], logits_processor=[AUTOMATON, None])
    uneven = [LogitsProcessor(automaton, np.zeros(n)) for n in (2, 3)]
    with pytest.raises(ValueError, match="states of 2 .* 2 sets of shapes"):
        engine.generate([[1], [2]], logits_processor=uneven)


def test_a_scheduler_refuses_a_sequence_with_another_processor(engine):
    scheduler = engine.open(2, 32, AUTOMATON)
    with pytest.raises(ValueError, match="2 slots .* another one or none"):
        scheduler.admit(Sequence([1], GREEDY, context_length=32))
