"""The beam search of docs/generation.md finds what trying everything finds."""

import functools
import itertools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rocmforge_jax.generate import Engine
from rocmforge_jax.models import Attention, Decoder, DecoderConfig, Gated
from rocmforge_jax.models.config import LayerConfig, Norms
from rocmforge_jax.nn import RopeConfig

pytestmark = pytest.mark.core
PAGE = Path(__file__).resolve().parents[2] / "docs" / "generation.md"
V, COUNT, PROMPT = 7, 3, [3, 1, 6, 2, 2]


@pytest.fixture(scope="module")
def beam_search():
    found = re.search(r"^def beam_search.*?^    return [^\n]*", PAGE.read_text(), re.M | re.S)
    assert found
    names = {"jax": jax, "jnp": jnp, "nnx": nnx, "np": np}
    exec(found[0], names)
    return names["beam_search"]


@pytest.fixture(scope="module")
def decoder():
    layer = LayerConfig(Attention(4, 2, 8, RopeConfig(8)), Gated(24), Norms(1e-5))
    config = DecoderConfig(
        (layer, layer), width=16, vocabulary=V, context_length=64, norm_epsilon=1e-5, tied=False
    )
    return Decoder(config, rngs=nnx.Rngs(4))


@functools.partial(jax.jit, static_argnums=0)
def _logits(graphdef, state, rows):
    return nnx.merge(graphdef, state)(rows)[0]


def logits_of(decoder, rows):
    return np.asarray(_logits(*nnx.split(decoder), np.asarray(rows, np.int32)), np.float64)


@pytest.fixture(scope="module")
def everything(decoder):
    """All texts of COUNT tokens and their log-probabilities, the likeliest first."""
    texts = np.array(list(itertools.product(range(V), repeat=COUNT)))
    rows = np.concatenate([np.tile(PROMPT, (len(texts), 1)), texts], axis=1)
    logits = logits_of(decoder, rows)[:, len(PROMPT) - 1 : -1]
    logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    scores = np.take_along_axis(logprobs, texts[..., None], axis=-1)[..., 0].sum(axis=1)
    order = np.argsort(-scores)
    return texts[order], scores[order]


def test_wide_beams_find_all_that_there_is(decoder, beam_search, everything):
    """With a beam for every text but for its last token nothing is lost."""
    beams = V ** (COUNT - 1)
    cache = Engine(decoder).cache(PROMPT).cache
    texts, scores = beam_search(decoder, cache, PROMPT[-1], beams, COUNT)
    np.testing.assert_array_equal(texts, everything[0][:beams])
    np.testing.assert_allclose(scores, everything[1][:beams], rtol=1e-5)


def test_narrow_beams_are_those_of_a_search_without_a_cache(decoder, beam_search):
    beams, truth = 3, [((), 0.0)]
    for _ in range(COUNT):
        longer = []
        for text, score in truth:
            logits = logits_of(decoder, [[*PROMPT, *text]])[0, -1]
            logprobs = logits - np.log(np.exp(logits).sum())
            longer += [((*text, id), score + logprobs[id]) for id in range(V)]
        truth = sorted(longer, key=lambda one: -one[1])[:beams]
    cache = Engine(decoder).cache(PROMPT).cache
    texts, scores = beam_search(decoder, cache, PROMPT[-1], beams, COUNT)
    assert [tuple(text) for text in texts.tolist()] == [text for text, _ in truth]
    np.testing.assert_allclose(scores, [score for _, score in truth], rtol=1e-5)
