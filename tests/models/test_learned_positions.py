"""Decoders with learned position embeddings: texts end at the last one, padding may exceed it."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest

from rocmforge_jax.generate import Engine, SamplingParams
from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.models import load_decoder
from tests.models import families, float64
from tests.models.synthetic import VOCABULARY
from tests.models.synthetic_cases import CASES

#: Positions of the long files, and of the short ones: prompts are padded to powers of two.
LONG, SHORT = 640, 100
IDS = np.random.default_rng(8).integers(0, VOCABULARY, 600).astype(np.int32)
#: Largest relative L2 error of float32 logits beside float64.
GATE = 1e-5
NAMES = ("gpt2", "starcoder")
GREEDY = SamplingParams(temperature=0)


def case(name: str, positions: int):
    """Returns the case of a family with a context of its own."""
    (one,) = (one for one in CASES if one.name == name)
    shapes = {
        **one.shapes,
        "position_embd.weight": (positions, one.shapes["output_norm.weight"][0]),
    }
    keys = {**one.keys, "context_length": positions}
    return dataclasses.replace(one, shapes=shapes, keys=keys)


@pytest.fixture(scope="module")
def decoder_of(tmp_path_factory):
    """decoder_of(name, positions): a decoder in float32."""

    @functools.cache
    def decoder_of(name, positions=SHORT):
        gguf = case(name, positions).write(tmp_path_factory.mktemp("file") / f"{name}.gguf")
        options = dict(dtype=jnp.float32, backend="xla", activations="float")
        return load_decoder(gguf, strict=True, **options)

    return decoder_of


@pytest.fixture(scope="module")
def truth(decoder_of):
    """truth(name): the logits of 600 tokens in float64, [T, V]."""
    return functools.cache(lambda name: float64.forward(decoder_of(name, LONG), IDS[None])[0])


@pytest.mark.parametrize("way", families.WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_long_texts_in_every_way(name, way, decoder_of, truth):
    for found in way(decoder_of(name, LONG), IDS):
        expected = truth(name)[list(found)]
        got = np.float64(list(found.values()))
        assert np.linalg.norm(got - expected) / np.linalg.norm(expected) < GATE


def test_positions_matter(decoder_of, truth):
    """Positions that are given replace those that are counted."""
    decoder, tokens = decoder_of("gpt2", LONG), IDS[None, :40]
    positions = np.arange(40, dtype=np.int32)[None]
    expected = truth("gpt2")[:40]
    given = np.asarray(decoder(tokens, positions_BT=positions)[0][0], np.float64)
    assert np.linalg.norm(given - expected) / np.linalg.norm(expected) < GATE
    moved = np.asarray(decoder(tokens, positions_BT=positions + 1)[0][0], np.float64)
    assert np.linalg.norm(moved - expected) / np.linalg.norm(expected) > 0.1


def test_texts_end_at_the_last_position(decoder_of):
    """A prompt of 90 tokens is padded to 128, beyond the 100 positions."""
    decoder, prompt = decoder_of("starcoder"), IDS[:90].tolist()
    pieces = [piece for (piece,) in Engine(decoder).generate([prompt], GREEDY)]
    answer = [id for piece in pieces for id in piece.ids]
    assert len(answer) == 10 and pieces[-1].finish_reason == "context"
    logits_TV = float64.forward(decoder, np.array([prompt + answer]))[0]
    assert logits_TV[89:99].argmax(axis=1).tolist() == answer


def test_a_longer_context_is_shortened_with_a_warning(decoder_of):
    message = "a context of 300 tokens .* the 100 positions"
    with pytest.warns(UserWarning, match=message) as caught:
        engine = Engine(decoder_of("gpt2"), context_length=300)
    assert engine.context_length == 100
    assert caught[0].filename == __file__
    with pytest.raises(ValueError, match="100 tokens, the context is 100"):
        next(iter(engine.generate([IDS[:100].tolist()], GREEDY, max_tokens=1)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model(IDS[None, :101]), "101 tokens.* 100 positions"),
        (lambda model: model(IDS[None, :101], model.init_cache(1, 128)), "101 tokens.* 100"),
        (
            lambda model: model(IDS[None, :2], positions_BT=np.array([[3, 100]], np.int32)),
            "position 100.* 100 positions",
        ),
        (
            lambda model: model(IDS[None, :2], positions_BT=np.array([[-1, 0]], np.int32)),
            "position -1.* 100 positions",
        ),
    ],
)
def test_positions_without_an_embedding_are_refused(call, message, decoder_of):
    with pytest.raises(ValueError, match=message):
        call(decoder_of("gpt2"))


def test_tokens_past_the_last_position_of_a_cache(decoder_of):
    decoder = decoder_of("gpt2")
    _, cache = decoder(IDS[None, :95], decoder.init_cache(1, 128))
    with pytest.raises(ValueError, match="position 100.* 100 positions"):
        decoder(IDS[None, 95:101], cache)
    padded = np.where(np.arange(8) < 5, IDS[95:103], 0)[None]
    logits, cache = decoder(padded, cache, lengths_B=np.array([5], np.int32))
    assert cache.lengths_B.tolist() == [100] and np.isfinite(logits).all()


def test_a_table_of_another_length_is_refused(tmp_path):
    one = case("gpt2", SHORT)
    gguf = dataclasses.replace(one, keys={**one.keys, "context_length": 90}).write(tmp_path / "a")
    with pytest.raises(GGUFError, match=r"position_embd.weight.*100.*90|90.*100"):
        load_decoder(gguf)
    gguf = one.write(tmp_path / "b", {"position_embd.weight": None})
    with pytest.raises(GGUFError, match="position_embd.weight"):
        load_decoder(gguf)
