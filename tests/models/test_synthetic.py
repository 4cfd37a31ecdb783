"""Families against llama.cpp's logits of small files: in one go, and through a cache in pieces."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rocmforge_jax.models import load_decoder
from tests.models.families import compiled
from tests.models.synthetic import IDS, LOGITS, PIECES, ROWS
from tests.models.synthetic_cases import CASES


@pytest.fixture(scope="module")
def decoder_of(tmp_path_factory):
    """decoder_of(case): a decoder of its file, in float32 and plain XLA."""

    @functools.cache
    def decoder_of(case):
        gguf = case.write(tmp_path_factory.mktemp("file") / f"{case}.gguf")
        options = dict(dtype=jnp.float32, backend="xla", activations="float")
        return load_decoder(gguf, strict=True, nextn=case.what == "nextn", **options)

    return decoder_of


def error(case, logits_TV):
    expected = np.float64(np.load(LOGITS)[case.name])
    found = np.asarray(logits_TV, np.float64)[list(ROWS)]
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def in_pieces(step, cache, count):
    """step(cache, slice of the tokens) for the pieces that make up `count` tokens -> logits."""
    found, start = [], 0
    for size in PIECES:
        end = min(start + size, count)
        if start < end:
            logits_BTV, cache = step(cache, slice(start, end))
            found.append(logits_BTV[0])
        start = end
    return np.concatenate(found)


def with_logits(deep=()):
    """The cases that have logits.

    deep: Marks of those of 32 and 64 layers, which take long to compile.
    """
    for case in CASES:
        if case.what == "logits":
            marks = deep if case.name in ("baichuan", "baichuan-13b", "command-r-plus") else ()
            yield pytest.param(case, id=str(case), marks=marks)


@pytest.mark.parametrize("case", list(with_logits()))
def test_logits_are_llama_cpp_s(case, decoder_of):
    step = compiled(decoder_of(case))
    assert error(case, step(None, IDS[None])[0][0]) < case.gate


@pytest.mark.parametrize("case", list(with_logits(deep=pytest.mark.heavy)))
def test_logits_in_pieces_are_llama_cpp_s(case, decoder_of):
    decoder = decoder_of(case)
    step, cache = compiled(decoder), decoder.init_cache(1, 229)
    through = in_pieces(lambda cache, part: step(cache, IDS[None, part]), cache, len(IDS))
    assert error(case, through) < case.gate


@pytest.mark.parametrize("case", [case for case in CASES if case.what == "nextn"], ids=str)
def test_multi_token_prediction_is_llama_cpp_s(case, decoder_of):
    """What the block predicts after each token, from the decoder's numbers for the one before."""
    decoder, next_BT = decoder_of(case), IDS[None, 1:]
    graphdef, state = nnx.split(decoder)

    @jax.jit
    def hidden_of(state, tokens_BT):
        return nnx.merge(graphdef, state).hidden(tokens_BT)[0]

    @jax.jit
    def predict(state, hidden_BTD, tokens_BT, cache):
        decoder = nnx.merge(graphdef, state)
        logits_BTV, _, cache = decoder.nextn[0].predict(decoder, hidden_BTD, tokens_BT, cache)
        return logits_BTV, cache

    hidden_BTD = hidden_of(state, IDS[None, :-1])
    logits_BTV, nothing = predict(state, hidden_BTD, next_BT, None)
    assert error(case, logits_BTV[0]) < case.gate and nothing is None
    cache = decoder.nextn[0].init_cache(1, 229)
    through = in_pieces(
        lambda cache, part: predict(state, hidden_BTD[:, part], next_BT[:, part], cache),
        cache,
        next_BT.shape[1],
    )
    assert error(case, through) < case.gate
