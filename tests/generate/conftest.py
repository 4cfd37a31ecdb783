"""A small decoder with random weights in float32: what is generated depends on every token before
it.
"""

import dataclasses
import functools
import logging

import jax
import pytest
from flax import nnx

from rocmforge_jax.generate import Engine
from rocmforge_jax.models import Attention, Decoder, DecoderConfig, Gated, ShortConvolution
from rocmforge_jax.models.config import LayerConfig, Norms
from rocmforge_jax.nn import RopeConfig

VOCABULARY = 64
ATTENTION, CONVOLUTION = Attention(4, 2, 8, RopeConfig(8)), ShortConvolution(32, 3)
#: The mixers of the layers of each small decoder.
MIXERS = {
    "attention": (ATTENTION, ATTENTION),
    "lfm2": (CONVOLUTION, ATTENTION, CONVOLUTION),
    "windows": (dataclasses.replace(ATTENTION, window=8), ATTENTION),
}


@pytest.fixture(scope="session")
def decoders():
    """decoders(kind): the decoder with the layers of MIXERS[kind]."""

    @functools.cache
    def decoders(kind):
        config = DecoderConfig(
            tuple(LayerConfig(mixer, Gated(64), Norms(1e-5)) for mixer in MIXERS[kind]),
            width=32,
            vocabulary=VOCABULARY,
            context_length=2048,
            norm_epsilon=1e-5,
            tied=False,
        )
        return Decoder(config, rngs=nnx.Rngs(0))

    return decoders


@pytest.fixture(scope="session")
def decoder(decoders):
    return decoders("attention")


@pytest.fixture(scope="session")
def engine(decoder):
    """One for all tests that do not count compilations: what it compiles is shared."""
    return Engine(decoder)


@pytest.fixture(scope="session")
def answer():
    """answer(engine, prompt, params...): (ids, logprobs, finish_reason) of one prompt, whole."""

    def answer(engine, prompt, *params, **options):
        dispatches = [dispatch[0] for dispatch in engine.generate([prompt], *params, **options)]
        assert all(dispatch.finish_reason is None for dispatch in dispatches[:-1])
        ids = [id for dispatch in dispatches for id in dispatch.ids]
        return (
            ids,
            [logprob for dispatch in dispatches for logprob in dispatch.logprobs],
            dispatches[-1].finish_reason,
        )

    return answer


@pytest.fixture
def compilations(caplog):
    """compilations(): how many programs XLA compiled since the last call."""

    def compilations():
        count = sum(
            record.getMessage().startswith("Finished XLA compilation") for record in caplog.records
        )
        caplog.clear()
        return count

    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        yield compilations
