"""The memory plan: what a model takes is known, and refused, before it is loaded."""

import jax.numpy as jnp
import pytest

import rocmforge_jax
from rocmforge_jax.locate import DEMO
from rocmforge_jax.models import plan as plan_module
from rocmforge_jax.models import plan_memory, read_config

pytestmark = pytest.mark.core


@pytest.fixture(scope="module")
def demo():
    gguf = rocmforge_jax.open_gguf(DEMO)
    return gguf, read_config(gguf)[0]


def test_weights_and_cache_are_counted_to_the_byte(demo):
    gguf, config = demo
    plan = plan_memory(gguf, config, jnp.bfloat16, context_length=100)
    assert plan.weights == sum(tensor.nbytes for tensor in gguf.tensors.values())
    assert plan.cache == config.layers * 2 * config.kv_heads * config.head_width * 100 * 2
    assert plan.total == plan.weights + plan.cache + plan.temporaries and plan.available > 0


def test_the_cache_is_counted_for_4096_tokens_of_a_long_context(demo):
    gguf, config = demo
    assert plan_memory(gguf, config, jnp.float32, context_length=1 << 20).slots == 4096
    assert plan_memory(gguf, config, jnp.float32).slots == config.context_length == 512


def test_what_cannot_fit_is_refused_with_the_numbers(monkeypatch):
    monkeypatch.setattr(plan_module, "available_bytes", lambda: 1 << 20)
    with pytest.raises(
        MemoryError,
        match=(
            r"does not fit: weights 0\.00 GiB \+ cache of 512 tokens 0\.00 GiB .* available"
            r" 0\.00 GiB"
        ),
    ):
        rocmforge_jax.load(DEMO)


def test_a_device_that_says_nothing_is_trusted(demo, monkeypatch):
    monkeypatch.setattr(plan_module, "available_bytes", lambda: None)
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
