"""Layers of one structure are traced once, whatever a user has put into them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pallas_kernels import targets
from rocmforge_jax.models import Attention, Decoder, DecoderConfig, Gated, Layer, kernel_report
from rocmforge_jax.nn import RopeConfig

pytestmark = pytest.mark.core

LAYERS, WIDTH = 5, 32
TOKENS = jnp.arange(7, dtype=jnp.int32)[None]


@pytest.fixture
def decoder():
    config = DecoderConfig.uniform(
        LAYERS,
        Attention(4, 2, 8, RopeConfig(8)),
        Gated(48),
        width=WIDTH,
        vocabulary=40,
        context_length=64,
        norm_epsilon=1e-5,
    )
    return Decoder(config, rngs=nnx.Rngs(0))


@pytest.fixture
def traces(monkeypatch):
    """Counts how often a layer is traced while a function is."""
    calls, call = [], Layer.__call__
    monkeypatch.setattr(Layer, "__call__", lambda *args: calls.append(1) or call(*args))

    def traces(decoder):
        calls.clear()
        jax.clear_caches()  # another test may have traced the same structure
        jax.make_jaxpr(lambda tokens: decoder(tokens)[0])(TOKENS)
        return len(calls)

    return traces


def with_adapters(decoder, layers=LAYERS):
    """Wraps attn_q of some layers in a LoRA whose second factor is not zero."""
    for i, block in enumerate(decoder.blk):
        if i < layers:
            lora = nnx.LoRA(WIDTH, 3, WIDTH, base_module=block.attn_q, rngs=nnx.Rngs(i))
            lora.lora_b.set_value(jnp.full(lora.lora_b.shape, 0.1 * (i + 1)))
            block.attn_q = lora
    return decoder


def test_layers_of_one_structure_are_traced_once(decoder, traces):
    assert traces(decoder) == 1


def test_adapters_do_not_change_that(decoder, traces):
    assert traces(with_adapters(decoder)) == 1


def test_each_structure_is_traced_once(decoder, traces):
    assert traces(with_adapters(decoder, layers=2)) == 2


def test_a_layer_that_a_call_may_change_is_traced_each_time(decoder, traces):
    for i, block in enumerate(decoder.blk):
        block.attn_output = nnx.Sequential(
            block.attn_output, nnx.Dropout(0.5, rngs=nnx.Rngs(i), deterministic=True)
        )
    assert traces(decoder) == LAYERS


def test_the_adapter_of_each_layer_is_its_own(decoder):
    """One trace serves all layers: with the arrays of each."""
    plain = decoder(TOKENS)[0]
    adapted = with_adapters(decoder)(TOKENS)[0]
    for block in decoder.blk:
        lora = block.attn_q
        product = lora.lora_a.get_value() @ lora.lora_b.get_value()
        merged = lora.base_module
        merged.kernel.set_value(merged.kernel.get_value() + product)
        block.attn_q = merged
    np.testing.assert_allclose(decoder(TOKENS)[0], adapted, rtol=1e-4, atol=1e-5)
    assert np.abs(np.asarray(adapted - plain)).max() > 1e-2


def test_the_report_names_what_a_user_has_put_in(decoder):
    with targets.use(targets.INTERPRET):
        entries = kernel_report(with_adapters(decoder, layers=1))
    assert any("lora_a" in entry.name for entry in entries)
    assert "a layer is a LoRA" in [entry.why for entry in entries]
    with pytest.raises(TypeError, match="takes a Decoder.*got a str"):
        kernel_report("demo")
