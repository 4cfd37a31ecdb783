"""The memory plan: what a model takes is known, and refused, before it is loaded."""

import jax
import jax.numpy as jnp
import pytest

import rocmforge_jax
from rocmforge_jax.generate import Engine, SamplingParams
from rocmforge_jax.locate import DEMO
from rocmforge_jax.models import load_decoder, plan_memory, read_config
from rocmforge_jax.models import plan as plan_module
from rocmforge_jax.models.plan import cache_length

pytestmark = pytest.mark.core


@pytest.fixture(scope="module")
def demo():
    gguf = rocmforge_jax.open_gguf(DEMO)
    return gguf, read_config(gguf)[0]


@pytest.mark.parametrize(
    ("dtype", "context_length", "prompt", "slots"),
    [
        (jnp.float32, 100, 5, 108),
        (jnp.bfloat16, 100, 60, 108),
        (jnp.bfloat16, 300, 250, 308),
        (jnp.float32, 512, 500, 520),
    ]
    + [
        pytest.param(dtype, *lengths, marks=pytest.mark.heavy)
        for dtype in (jnp.float32, jnp.bfloat16)
        for lengths in ((300, 20, 308), (512, 3, 520))
    ],
)
def test_weights_and_cache_are_counted_to_the_byte(demo, dtype, context_length, prompt, slots):
    """Of a text that fills its context: what the engine holds after generating it."""
    gguf, config = demo
    plan = plan_memory(gguf, config, dtype, context_length=context_length)
    engine = Engine(load_decoder(gguf, dtype=dtype), context_length=context_length)
    greedy = SamplingParams(temperature=0)
    text = list(range(1, prompt + 1))
    for (added,) in engine.generate([text], greedy):
        text = text + added.ids
    assert added.finish_reason == "context" and len(text) == context_length
    cache, *_ = engine.prefix_cache.take(text)
    assert (cache.length, plan.slots) == (slots, slots)
    assert plan.cache == sum(array.nbytes for array in jax.tree.leaves(cache))
    assert plan.weights == sum(tensor.nbytes for tensor in gguf.tensors.values())
    assert plan.total == plan.weights + plan.cache + plan.temporaries and plan.available > 0


def test_the_cache_is_counted_for_4096_tokens_of_a_long_context(demo):
    gguf, config = demo
    assert plan_memory(gguf, config, jnp.float32, context_length=1 << 20).slots == 4096
    assert config.context_length == 512
    assert plan_memory(gguf, config, jnp.float32).slots == 520


@pytest.mark.parametrize(
    ("tokens", "context_length", "slots"),
    [(1, 2048, 256), (256, 2048, 256), (257, 2048, 512), (2048, 2048, 2048), (2049, 2048, 2056)]
    + [(1, 100, 108), (100, 100, 108), (128, 100, 128), (600, 1024, 1024), (1025, 1024, 1032)],
)
def test_caches_are_powers_of_two_up_to_the_context(tokens, context_length, slots):
    assert cache_length(tokens, context_length) == slots


def test_what_cannot_fit_is_refused_with_the_numbers(monkeypatch):
    monkeypatch.setattr(plan_module, "available_bytes", lambda _: 1 << 20)
    with pytest.raises(
        MemoryError,
        match=(
            r"does not fit: weights 0\.00 GiB \+ cache of 520 slots 0\.00 GiB .* available"
            r" 0\.00 GiB"
        ),
    ):
        rocmforge_jax.load(DEMO)


def test_a_device_that_says_nothing_is_trusted(demo, monkeypatch):
    monkeypatch.setattr(plan_module, "available_bytes", lambda _: None)
    plan = plan_memory(*demo, jnp.float32)
    plan.check()
    assert "available unknown" in str(plan)


def test_the_plan_is_shown_with_the_progress(capsys):
    rocmforge_jax.load(DEMO, progress=True)
    assert "demo.gguf: weights" in capsys.readouterr().err


def test_a_context_beyond_the_trained_one_warns_with_both_numbers():
    with pytest.warns(
        UserWarning,
        match="a context of 600 tokens is longer than the 512 the model was trained for",
    ):
        rocmforge_jax.load(DEMO, context_length=600)
