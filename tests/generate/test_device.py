"""Decoding stays on the device, in place, and compiles once."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rocmforge_jax.generate import Engine, SamplingParams
from rocmforge_jax.generate.steps import start
from rocmforge_jax.models.plan import TOKENS_PER_DISPATCH

pytestmark = pytest.mark.core
DRAWN = SamplingParams(
    temperature=0.9, top_k=12, top_p=0.9, min_p=0.02, repetition_penalty=1.1, seed=3
)


@pytest.fixture
def decode(engine):
    """decode(batch): the jitted decode and its arguments, of which the cache is the second."""

    def decode(batch):
        cache = engine.steps.init_cache(batch, 256)
        logits_BV = jnp.zeros((batch, engine.config.vocabulary), jnp.float32)
        slots, _, _ = start(logits_BV, cache, [[1]] * batch, [DRAWN] * batch)
        decode = engine.steps.decode
        return decode.jitted, decode.arguments(slots, TOKENS_PER_DISPATCH)

    return decode


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_a_dispatch_has_no_way_to_the_host(decode, batch, optimised):
    jitted, arguments = decode(batch)
    traced = jitted.trace(*arguments)
    lowered = traced.lower()
    for text in (str(traced.jaxpr), lowered.as_text(), lowered.compile(optimised).as_text()):
        assert "dynamic" in text.lower()  # the update of the cache: this is the program
        assert not re.search(
            "callback|infeed|outfeed|host_compute|send\\(|recv\\(", text, re.IGNORECASE
        )


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_the_cache_is_updated_in_place(decode, batch, optimised):
    """The cache is donated: the new one takes the memory of the old one without a copy."""
    jitted, (leaves, cache, *rest) = decode(batch)
    compiled = jitted.lower(leaves, cache, *rest).compile(optimised)
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == cache.nbytes
    assert memory.temp_size_in_bytes < cache.nbytes / 2
    shapes = {layer.keys.shape for layer in cache.layers} | {
        layer.values.shape for layer in cache.layers
    }
    copies = re.findall(r"f32\[([\d,]+)\]\S* (?:copy|transpose)\(", compiled.as_text())
    assert not shapes & {tuple(map(int, copy.split(","))) for copy in copies}

    before = [layer.values.unsafe_buffer_pointer() for layer in cache.layers]
    after, *_ = jitted(leaves, cache, *rest)
    assert all(leaf.is_deleted() for layer in cache.layers for leaf in (layer.keys, layer.values))
    assert [layer.values.unsafe_buffer_pointer() for layer in after.layers] == before


def test_a_dispatch_takes_nothing_from_the_host(engine):
    """After the prompt, every dispatch runs under the guard that forbids implicit transfers."""
    dispatches = engine.generate([[1, 2, 3]], DRAWN, max_tokens=30)
    next(dispatches)
    with jax.transfer_guard("disallow"):
        ids = [id for dispatch in dispatches for id in dispatch[0].ids]
    assert len(ids) == 29


def test_the_guard_would_have_noticed(engine):
    """The prompt does come from the host."""
    with (
        jax.transfer_guard("disallow"),
        pytest.raises(Exception, match="Disallowed host-to-device transfer"),
    ):
        list(engine.generate([[1, 2, 3]], DRAWN, max_tokens=30))


def test_other_parameters_seeds_and_prompts_compile_nothing(decoder, answer, compilations):
    engine = Engine(decoder)
    answer(engine, [1, 2, 3], DRAWN, max_tokens=20)
    assert compilations() > 0
    for number, length in enumerate((1, 5, 16, 9)):
        params = SamplingParams(
            temperature=number / 2,
            top_k=number,
            top_p=1 - number / 9,
            min_p=number / 20,
            typical_p=0.9,
            seed=number,
        )
        answer(engine, [number + 7] * length, params, max_tokens=20 - number)
    assert compilations() == 0
    answer(engine, np.arange(1, 18).tolist(), DRAWN, max_tokens=20)
    assert 0 < compilations() < 4  # another length of prompts


def test_a_warm_engine_compiles_nothing(decoder, answer, compilations):
    engine = Engine(decoder)
    engine.warm_up()
    assert compilations() > 0
    answer(engine, [1, 2, 3], DRAWN, max_tokens=20)
    assert compilations() == 0
