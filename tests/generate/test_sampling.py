"""Sampling against NumPy in float64: the sets of tokens kept, the distribution drawn from, greedy
choice, penalties.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rocmforge_jax.generate import Sampler, SamplingParams, sample
from rocmforge_jax.generate.params import PENALTY_WINDOW
from rocmforge_jax.generate.sampling import keep_likely

pytestmark = pytest.mark.core
INF = np.inf
KEEP_ALL = dict(top_k=0, typical_p=1.0, top_p=1.0, min_p=0.0)

LOGITS = {
    "random": np.random.default_rng(0).normal(0, 3, 200),
    "steep": np.random.default_rng(1).normal(0, 30, 50),
    "flat": np.random.default_rng(2).normal(0, 1e-3, 50),
    "equal": np.zeros(8),
    "pairs": np.repeat([3.0, 1.0, -1.0, -4.0], 2),
    "signed zeros": np.array([0.0, -0.0, -1.0, 1.0]),
    "banned": np.array([-INF, 1.0, -INF, 0.5, -2.0]),
    "one left": np.array([-INF, -INF, 4.0]),
    "one token": np.array([-7.0]),
    "far below": np.array([0.0, -200.0, -1000.0]),
    "large": np.array([1e30, 1e30, -1e30, 0.0]),
}


def kept(logits, top_k, typical_p, top_p, min_p):
    """The tokens each step leaves, written out; those that tie with the last one kept stay."""
    logits = logits.astype(np.float32).astype(np.float64)
    keep = np.ones(len(logits), bool)
    if 0 < top_k < len(logits):
        keep &= logits >= np.sort(logits)[-top_k]

    def share(score, p):
        """The best by score that together have the share p of the probability left."""
        weights = np.where(keep, np.exp(logits - logits.max()), 0)
        order = np.argsort(-score, kind="stable")
        last = np.searchsorted(np.cumsum(weights[order]) / weights.sum(), p - 1e-7)
        return score >= score[order[min(last, len(order) - 1)]]

    if typical_p < 1:
        weights = np.where(keep, np.exp(logits - logits.max()), 0)
        p = weights / weights.sum()
        surprise = -np.log(np.maximum(p, np.finfo(np.float32).tiny))
        keep &= share(
            np.where(keep, -np.round(np.abs(surprise - (p * surprise).sum()), 6), -INF), typical_p
        )
    if top_p < 1:
        keep &= share(np.where(keep, logits, -INF), top_p)
    weights = np.where(keep, np.exp(logits - logits.max()), 0)
    return keep & (weights >= min_p * weights.max())


SAMPLE, KEEP = jax.jit(sample), jax.jit(keep_likely)
WIDTH = max(map(len, LOGITS.values()))
#: All cases as one batch, filled up with tokens of probability 0: those are never drawn, kept or
#: not.
TABLE = np.stack(
    [np.pad(logits, (0, WIDTH - len(logits)), constant_values=-INF) for logits in LOGITS.values()]
).astype(np.float32)


def keep(logits_BV, **params):
    arrays = [
        jnp.full(len(logits_BV), params[name], jnp.int32 if name == "top_k" else jnp.float32)
        for name in KEEP_ALL
    ]
    return np.asarray(KEEP(logits_BV, *arrays)) & (logits_BV > -INF)


@pytest.mark.parametrize(
    "params",
    [
        *({"top_k": k} for k in (0, 1, 2, 3, 7, 10_000, 2**31 - 1)),
        *({"top_p": p} for p in (1e-46, 1e-40, 1e-6, 0.1, 0.3, 0.55, 0.9, 0.999, 1.0)),
        *({"min_p": p} for p in (0.0, 1e-6, 0.05, 0.4, 1.0)),
        {"top_k": 5, "top_p": 0.7},
        {"top_k": 3, "top_p": 0.95, "min_p": 0.2},
    ],
    ids=str,
)
def test_the_tokens_kept(params):
    params = KEEP_ALL | params
    for name, got, row in zip(LOGITS, keep(TABLE, **params), TABLE):
        expected = kept(row, **params) & (row > -INF)
        assert expected.any()
        np.testing.assert_array_equal(got, expected, err_msg=name)


@pytest.mark.parametrize("typical_p", [0.05, 0.3, 0.7, 0.95])
def test_the_typical_tokens(typical_p):
    params = KEEP_ALL | {"typical_p": typical_p}
    rows = [list(LOGITS).index(name) for name in ("random", "steep", "equal", "one token")]
    for row, got in zip(TABLE[rows], keep(TABLE, **params)[rows]):
        np.testing.assert_array_equal(got, kept(row, **params) & (row > -INF))


def test_a_vocabulary_of_one_token():
    one = np.array([[-7.0]], np.float32)
    assert keep(one, top_k=1, typical_p=0.5, top_p=0.5, min_p=0.5).tolist() == [[True]]


@pytest.mark.parametrize("name", ["top_p", "typical_p"])
def test_a_row_that_keeps_all_keeps_all_beside_one_that_does_not(name):
    """Tokens too unlikely to change a float32 sum are lost neither alone nor in a batch."""
    logits = jnp.array([[0.0, -1.0, -40.0, -60.0]] * 2, jnp.float32)
    params = {
        key: jnp.full(2, value, jnp.int32 if key == "top_k" else jnp.float32)
        for key, value in KEEP_ALL.items()
    }
    params[name] = jnp.array([1.0, 0.5], jnp.float32)
    assert KEEP(logits, *params.values()).tolist()[0] == [True] * 4


def draw(logits, count, **params):
    """`count` draws from the same logits, one for each position."""
    params = SamplingParams(**{"temperature": 1.0} | KEEP_ALL | params)
    logits_BV = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (count, len(logits)))
    return SAMPLE(logits_BV, Sampler.of([params] * count), jnp.arange(count, dtype=jnp.int32))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("limits", [{}, {"top_k": 4}, {"top_p": 0.8}, {"min_p": 0.3}], ids=str)
def test_the_distribution_drawn_from(temperature, limits):
    """Pearson's chi-square over 4000 draws stays below its 99.9 % quantile, 29.6 for at most 10
    degrees of freedom.
    """
    logits = np.random.default_rng(3).normal(0, 1, 11)
    tokens, _ = draw(logits, 4000, temperature=temperature, seed=11, **limits)
    keep = kept(logits, **KEEP_ALL | limits)
    weights = np.where(keep, np.exp(logits / temperature), 0)
    expected = 4000 * weights / weights.sum()
    counts = np.bincount(tokens, minlength=11)
    assert not counts[~keep].any()
    assert ((counts - expected)[keep] ** 2 / expected[keep]).sum() < 29.6


def test_other_seeds_draw_independently():
    """Two seeds agree as often as chance has it: 4000 draws from 4 equal tokens, four standard
    deviations.
    """
    first, second = (np.asarray(draw(np.zeros(4), 4000, seed=seed)[0]) for seed in (0, 1))
    assert abs((first == second).mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 4000)


@pytest.mark.parametrize("temperature", [1e-46, 1e-40, 1e-38, 1e-4])
@pytest.mark.parametrize("shift", [-5.0, 0.0, 5.0])
def test_a_tiny_temperature_is_greedy(temperature, shift):
    tokens, _ = draw(np.array([-3.0, 0.5, -1.0]) + shift, 50, temperature=temperature)
    assert set(tokens.tolist()) == {1}


def test_a_huge_temperature_is_uniform():
    tokens, _ = draw(np.array([-3.0, 0.5, -1.0]), 3000, temperature=1e30)
    assert np.bincount(tokens).min() > 1000 - 4 * math.sqrt(3000 * 2 / 9)


def test_greedy_takes_the_lowest_of_the_likeliest():
    logits = jnp.array([[1, 3, 3, 2], [5, 5, 5, 5], [-2, -1, -3, -1]], jnp.float32)
    tokens, _ = SAMPLE(
        logits, Sampler.of([SamplingParams(temperature=0)] * 3), jnp.zeros(3, jnp.int32)
    )
    assert tokens.tolist() == [1, 0, 1] and tokens.dtype == jnp.int32


def test_greedy_and_drawn_rows_in_one_batch():
    logits = jnp.asarray(np.random.default_rng(4).normal(size=(2, 30)), jnp.float32)
    params = [SamplingParams(temperature=0), SamplingParams(temperature=5.0, **KEEP_ALL)]
    tokens = [
        SAMPLE(logits, Sampler.of(params), jnp.full(2, i, jnp.int32))[0].tolist() for i in range(20)
    ]
    assert {row[0] for row in tokens} == {int(logits[0].argmax())} and len(
        {row[1] for row in tokens}
    ) > 5


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0},
        {"temperature": 2.0},
        {"temperature": 0.7, "top_k": 3, "logit_bias": {2: 5.0}},
    ],
    ids=str,
)
def test_logprobs_are_the_model_s_own(params):
    """Log-softmax of the logits as they came, whatever the sampling."""
    logits = np.random.default_rng(5).normal(0, 2, 40).astype(np.float32)
    tokens, logprobs = draw(logits, 16, **params)
    expected = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    np.testing.assert_allclose(logprobs, expected[np.asarray(tokens)], rtol=1e-5, atol=1e-6)


#: A setting of JAX -> a value that changes its random numbers.
SETTINGS = {
    "jax_default_prng_impl": "rbg",
    "jax_default_prng_impl ": "unsafe_rbg",
    "jax_threefry_partitionable": False,
    "jax_high_dynamic_range_gumbel": True,
    "jax_enable_x64": True,
    "jax_random_seed_offset": 77,
}


@pytest.mark.parametrize("seed", [0, 5, 2**32 - 1])
def test_a_seed_is_a_key_of_threefry(seed):
    """The numbers that JAX's functions give with its default settings."""
    logits = jnp.asarray(np.random.default_rng(6).normal(size=50), jnp.float32)
    keys = [jax.random.fold_in(jax.random.key(np.uint32(seed)), i) for i in range(9)]
    expected = [int(jax.random.categorical(key, logits - logits.max())) for key in keys]
    assert draw(logits, 9, seed=seed)[0].tolist() == expected


@pytest.mark.parametrize("setting", SETTINGS)
def test_equal_seeds_draw_equal_tokens_with_every_setting(setting):
    logits = np.random.default_rng(6).normal(size=50)
    expected = draw(logits, 30, seed=2**40 + 3)[0].tolist()
    name, value = setting.strip(), SETTINGS[setting]
    before = getattr(jax.config, name)
    try:
        jax.config.update(name, value)
        jax.clear_caches()
        assert draw(logits, 30, seed=2**40 + 3)[0].tolist() == expected
    finally:
        jax.config.update(name, before)
        jax.clear_caches()


def test_seeds_have_64_bits():
    """Two seeds that differ in the upper half only are two seeds."""
    texts = {tuple(draw(np.zeros(90), 9, seed=s)[0].tolist()) for s in (3, 2**32 + 3, 2**63 + 3)}
    assert len(texts) == 3
    assert len(draw(np.zeros(90), 9, seed=2**64 - 1)[0]) == 9


def truth(logits, recent, params):
    """The probabilities of the next token in float64, penalties and biases included."""
    logits = np.array(logits, np.float64)
    for id, bias in params.logit_bias.items():
        logits[id] += bias
    times = np.bincount(recent, minlength=len(logits))
    with np.errstate(under="ignore"):
        repeated = np.where(
            logits > 0, logits / params.repetition_penalty, logits * params.repetition_penalty
        )
    penalized = repeated - times * params.frequency_penalty - params.presence_penalty
    logits = np.where(times > 0, penalized, logits)
    keep = kept_exactly(logits, params)
    with np.errstate(over="ignore"):
        weights = np.where(keep, np.exp((logits - logits.max()) / params.temperature), 0)
    return weights / weights.sum()


def kept_exactly(logits, params):
    """Like `kept`, without rounding the logits to float32."""
    shifted = np.maximum(logits - logits.max(), -1e4)  # keeps the order of likely tokens
    return kept(shifted, params.top_k, params.typical_p, params.top_p, params.min_p)


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1e308},
        {"temperature": 1e308, "top_k": 3},
        {"temperature": 1e300, "logit_bias": {1: -INF}},
        {"temperature": 5e-324},
        {"top_k": 2**31 - 1, "top_p": 1 - 2**-53},
        {"top_p": 5e-324},
        {"typical_p": 5e-324},
        {"min_p": 1},
        {"repetition_penalty": 1e300},
        {"repetition_penalty": 1e-307},
        {"presence_penalty": 1e300},
        {"presence_penalty": -1e300},
        {"frequency_penalty": 1e300},
        {"frequency_penalty": -1e300},
        {"logit_bias": {2: 1e300}},
        {"logit_bias": {2: 1e300, 3: 1e300}},
        {"logit_bias": dict.fromkeys(range(5), -1e300)},
        {"logit_bias": dict.fromkeys(range(5), -INF)},
        {"logit_bias": {0: -INF}, "presence_penalty": -1e300},
    ],
    ids=str,
)
def test_extreme_parameters_do_what_their_limit_does(params):
    """Pearson's chi-square over 3000 draws stays below its 99.9 % quantile, 20.5 for at most 5
    degrees of freedom; tokens that float64 never draws are never drawn.
    """
    logits, recent = [1.5, 0.75, -0.5, 0.0, -1.25, 1.0], [0, 0, 0, 2, 1]
    params = SamplingParams(**{"temperature": 1.0, "seed": 8} | KEEP_ALL | params)
    expected = 3000 * truth(logits, recent, params)
    history = np.array([-1] * (PENALTY_WINDOW - len(recent)) + recent, np.int32)
    tokens, logprobs = SAMPLE(
        jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (3000, 6)),
        Sampler.of([params] * 3000),
        jnp.arange(3000, dtype=jnp.int32),
        jnp.broadcast_to(history, (3000, PENALTY_WINDOW)),
    )
    counts, likely = np.bincount(tokens, minlength=6), expected > 0
    assert not counts[~likely].any() and np.isfinite(logprobs).all()
    assert ((counts - expected)[likely] ** 2 / expected[likely]).sum() < 20.5


@pytest.mark.parametrize(
    ("params", "recent", "expected"),
    [
        ({"frequency_penalty": -1e300}, [1, 2, 2], 2),  # for each time, also near infinity
        ({"frequency_penalty": 1e300}, [0, 0, 1, 2, 2], 1),
        ({"repetition_penalty": 1e300}, [0, 1], 2),
        ({"repetition_penalty": 5e-324}, [1], 1),
        ({"presence_penalty": 1e308, "logit_bias": {2: -INF}}, [0, 1, 2], 0),  # a ban is lower
    ],
    ids=str,
)
def test_greedy_with_extreme_penalties(params, recent, expected):
    assert greedy([3.0, 2.0, 1.0], recent, **params) == expected


@pytest.mark.parametrize("temperature", [0, 1.0, 1e308])
def test_tokens_that_are_not_allowed_are_never_chosen(temperature):
    """Whatever speaks for them; log-probabilities stay those of the whole distribution."""
    logits = np.array([9.0, 1.0, 8.0, 0.5, 7.0], np.float32)
    allowed = np.array([False, True, False, True, False])
    params = SamplingParams(
        temperature=temperature, logit_bias={0: 1e9}, presence_penalty=-50, **KEEP_ALL
    )
    tokens, logprobs = SAMPLE(
        jnp.broadcast_to(logits, (300, 5)),
        Sampler.of([params] * 300),
        jnp.arange(300, dtype=jnp.int32),
        jnp.full((300, PENALTY_WINDOW), 2, jnp.int32),
        jnp.asarray(allowed),
    )
    assert set(tokens.tolist()) == ({1, 3} if temperature else {1})
    expected = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    np.testing.assert_allclose(logprobs, expected[np.asarray(tokens)], rtol=1e-6)


def greedy(logits, recent=None, **params):
    history = (
        None
        if recent is None
        else jnp.array([[-1] * (PENALTY_WINDOW - len(recent)) + recent], jnp.int32)
    )
    params = SamplingParams(temperature=0, **params)
    return int(
        SAMPLE(
            jnp.array([logits], jnp.float32), Sampler.of([params]), jnp.zeros(1, jnp.int32), history
        )[0][0]
    )


@pytest.mark.parametrize(
    ("logits", "recent", "params", "expected"),
    [
        ([2.0, 1.0, 0.5], [0], {"repetition_penalty": 1.9}, 0),  # 2 / 1.9 > 1
        ([2.0, 1.0, 0.5], [0], {"repetition_penalty": 2.1}, 1),
        ([-1.0, -1.5, -9.0], [0], {"repetition_penalty": 1.4}, 0),  # negative logits are multiplied
        ([-1.0, -1.5, -9.0], [0], {"repetition_penalty": 1.6}, 1),
        ([2.0, 1.0, 0.5], [0, 0, 0], {"presence_penalty": 0.9}, 0),  # once, however often
        ([2.0, 1.0, 0.5], [0], {"presence_penalty": 1.1}, 1),
        ([2.0, 1.0, 0.5], [0, 0], {"frequency_penalty": 0.4}, 0),
        ([2.0, 1.0, 0.5], [0, 0, 0], {"frequency_penalty": 0.4}, 1),  # for each time
        # The first is too long ago.
        (
            [2.0, 1.0, 0.5],
            [0, 1, 1],
            {"presence_penalty": 9.0, "penalty_last_n": 2},
            0,
        ),
        ([2.0, 1.0, 0.5], [0, 1, 1], {"presence_penalty": 9.0, "penalty_last_n": 3}, 2),
        ([2.0, 1.0, 0.5], [0, 0], {"presence_penalty": 9.0, "penalty_last_n": 0}, 0),
        ([2.0, 1.0, 0.5], [2], {"presence_penalty": -2.0}, 2),
        ([2.0, 1.0, 0.5], None, {"logit_bias": {2: 1.4}}, 0),
        ([2.0, 1.0, 0.5], None, {"logit_bias": {2: 1.6}}, 2),
        ([2.0, 1.0, 0.5], None, {"logit_bias": {0: -INF, 1: -0.6}}, 2),
    ],
)
def test_penalties_and_biases(logits, recent, params, expected):
    assert greedy(logits, recent, **params) == expected


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"temperature": -0.1}, "temperature must be a finite number of at least 0, got -0.1"),
        ({"temperature": INF}, "temperature must be a finite number of at least 0, got inf"),
        ({"temperature": math.nan}, "temperature must be a finite number of at least 0, got nan"),
        ({"temperature": "1"}, "temperature must be a finite number of at least 0, got '1'"),
        ({"temperature": True}, "temperature must be a finite number of at least 0, got True"),
        ({"top_p": 0.0}, "top_p must be a finite number above 0 and at most 1, got 0.0"),
        ({"top_p": 1.1}, "top_p must be a finite number above 0 and at most 1, got 1.1"),
        ({"typical_p": 0}, "typical_p must be a finite number above 0 and at most 1, got 0"),
        ({"min_p": -0.1}, "min_p must be a finite number of at least 0 and at most 1, got -0.1"),
        ({"min_p": 2}, "min_p must be a finite number of at least 0 and at most 1, got 2"),
        ({"top_k": -1}, "top_k must be an integer from 0 to 2147483647, got -1"),
        ({"top_k": 2.0}, "top_k must be an integer from 0 to 2147483647, got 2.0"),
        ({"seed": -1}, "seed must be an integer from 0 to 18446744073709551615, got -1"),
        (
            {"seed": 2**64},
            "seed must be an integer from 0 to 18446744073709551615, got 18446744073709551616",
        ),
        ({"seed": False}, "seed must be an integer from 0 to 18446744073709551615, got False"),
        ({"repetition_penalty": 0}, "repetition_penalty must be a finite number above 0, got 0"),
        ({"presence_penalty": INF}, "presence_penalty must be a finite number, got inf"),
        ({"frequency_penalty": "1"}, "frequency_penalty must be a finite number, got '1'"),
        ({"penalty_last_n": 257}, "penalty_last_n must be an integer from 0 to 256, got 257"),
        (
            {"logit_bias": {-1: 0.0}},
            "a token of logit_bias must be an integer from 0 to 2147483647, got -1",
        ),
        ({"logit_bias": [1, 2]}, r"logit_bias must map token ids to numbers, got list \[1, 2\]"),
        ({"logit_bias": {"1": 2}}, "a token of logit_bias must be an integer .* got '1'"),
        ({"logit_bias": {1: True}}, "the logit_bias of token 1 must be .* got True"),
        ({"logit_bias": {1: INF}}, "the logit_bias of token 1 must be a number or -inf, got inf"),
        (
            {"logit_bias": {1: math.nan}},
            "the logit_bias of token 1 must be a number or -inf, got nan",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_parameters_out_of_range(params, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**params)
