"""Generation uses the arrays that the decoder has now, and compiles nothing again for them."""

import dataclasses
import gc
import weakref

import jax
import numpy as np
import pytest
from flax import nnx

import rocmforge_jax as rf

pytestmark = pytest.mark.core
PROMPT = "ROMEO:"


@pytest.fixture
def lm():
    return rf.load("demo", progress=False)


@pytest.fixture
def traces():
    """Returns how many functions JAX has traced so far."""
    seen = []
    jax.monitoring.register_event_duration_secs_listener(listener := _collector(seen))
    yield lambda: len(seen)
    jax.monitoring.unregister_event_duration_listener(listener)


def _collector(seen):
    def listener(event, *_, **__):
        if event.endswith("jaxpr_trace_duration"):
            seen.append(event)

    return listener


def answer(lm):
    return lm.generate(PROMPT, max_tokens=12, temperature=0)


def disturb(model, amount=0.8):
    """Changes every norm in place, as an optimiser does."""
    for _, variable in nnx.iter_graph(model):
        if isinstance(variable, nnx.Param) and variable.ndim == 1:
            variable[...] = variable[...] * np.float32(amount)


def test_a_model_trained_in_place_is_used_without_compiling(lm, traces):
    before = answer(lm)
    answer(lm)  # with the prefix kept
    disturb(lm.model)
    count = traces()
    after = answer(lm)
    assert traces() == count
    fresh = rf.LanguageModel(lm.model, lm.tokenizer).generate(PROMPT, max_tokens=12, temperature=0)
    assert after == fresh and after.logprobs != before.logprobs


def replace_a_variable(layer):
    layer.attn_norm.scale = nnx.Param(layer.attn_norm.scale[...] * np.float32(0.5))


def replace_a_module(layer):
    other = nnx.clone(layer.attn_norm)
    other.scale[...] = other.scale[...] * np.float32(0.5)
    layer.attn_norm = other


def replace_a_plane(layer):
    planes = layer.ffn_down.kernel.get_raw_value().planes
    planes["d"] = planes["d"] * np.float16(0.5)


@pytest.mark.parametrize("change", [replace_a_variable, replace_a_module, replace_a_plane])
def test_what_was_replaced_is_used(change, lm):
    before = answer(lm)
    change(lm.model.blk[1])
    after = answer(lm)
    fresh = rf.LanguageModel(lm.model, lm.tokenizer).generate(PROMPT, max_tokens=12, temperature=0)
    assert after == fresh and after.logprobs != before.logprobs


def test_another_model_of_the_same_structure_is_used_without_compiling(lm, traces):
    other = rf.load("demo", progress=False)
    disturb(other.model)
    expected = answer(other)
    before = answer(lm)
    count = traces()
    lm.model = other.model
    assert answer(lm) == expected != before and traces() == count


def test_another_structure_is_compiled(lm):
    expected = answer(lm)
    kernel = lm.model.blk[0].attn_q.kernel
    lm.model.blk[0].attn_q.kernel = nnx.Param(rf.dequantize(kernel))
    np.testing.assert_allclose(answer(lm).logprobs, expected.logprobs, rtol=1e-2, atol=1e-3)
    disturb(lm.model)
    assert answer(lm).logprobs != expected.logprobs


def test_a_stream_goes_on_with_the_weights_it_began_with(lm):
    whole = lm.generate(PROMPT, max_tokens=40, temperature=0)
    stream = lm.generate(PROMPT, max_tokens=40, temperature=0, stream=True)
    pieces = [next(stream)]
    disturb(lm.model)
    other = answer(lm)
    assert "".join([*pieces, *stream]) == whole.text
    # What the stream left behind was computed with other weights, and is not gone on from.
    assert answer(lm) == other


def test_scores_and_prefill_use_them_too(lm):
    ids = np.arange(1, 9)[None]
    score = np.asarray(lm.engine.score(ids))
    logits, _ = lm.engine.prefill([[1, 2, 3]])
    disturb(lm.model)
    assert np.abs(np.asarray(lm.engine.score(ids)) - score).max() > 1e-3
    assert np.abs(lm.engine.prefill([[1, 2, 3]])[0] - logits).max() > 1e-3


def test_embeddings_use_them_too_without_compiling(lm, traces):
    def embedded():
        return lm.embed(["To be", "or not to be"], pooling="mean")

    before = embedded()
    disturb(lm.model)
    count = traces()
    after = embedded()
    assert traces() == count and np.abs(after - before).max() > 1e-3
    np.testing.assert_array_equal(
        after,
        rf.LanguageModel(lm.model, lm.tokenizer).embed(["To be", "or not to be"], pooling="mean"),
    )
    lm.model.blk[0].attn_q.kernel = nnx.Param(rf.dequantize(lm.model.blk[0].attn_q.kernel))
    np.testing.assert_allclose(embedded(), after, atol=1e-3)


def test_a_model_that_was_replaced_is_given_back(lm):
    answer(lm)
    old = weakref.ref(lm.model.blk[0].attn_norm.scale.get_value())
    lm.model = nnx.clone(lm.model)
    disturb(lm.model)
    answer(lm)
    gc.collect()
    assert old() is None


def test_an_engine_refuses_a_decoder_of_another_vocabulary(lm):
    config = lm.model.config
    with rf.nn.only_shapes():
        other = rf.models.Decoder(dataclasses.replace(config, vocabulary=100), rngs=None)
    with pytest.raises(ValueError, match=rf"100.*{config.vocabulary}"):
        lm.engine.use(other)
