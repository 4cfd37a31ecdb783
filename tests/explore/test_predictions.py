"""Next tokens, logit lens, statistics and losses beside float64 and the model itself."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rocmforge_jax as rf
from rocmforge_jax.explore import watch
from rocmforge_jax.models import Attention, DecoderConfig, Gated, ShortConvolution
from rocmforge_jax.models.altup import AltUp
from rocmforge_jax.nn import RopeConfig

PLAIN = Attention(6, 2, 8, RopeConfig(8))
IDS = np.random.default_rng(5).integers(0, 61, 19).tolist()


@pytest.fixture(scope="module")
def lm():
    return rf.load("demo", progress=False, backend="xla")


@pytest.fixture(scope="module", params=["untied", "tied"])
def decoder(request, decoder_of):
    tied = request.param == "tied"
    decoder = decoder_of(PLAIN, ShortConvolution(24, 3), PLAIN, tied=tied, logit_scale=0.7)
    decoder.output_norm.scale[...] = jnp.linspace(0.5, 2, 24)
    return decoder


def head(decoder, streams):
    """The last norm and the head in float64."""
    x = streams / np.sqrt(np.square(streams).mean(-1, keepdims=True) + 1e-5)
    x = x * np.asarray(decoder.output_norm.scale[...], np.float64)
    if decoder.output is None:
        return 0.7 * x @ np.asarray(decoder.token_embd.embedding[...], np.float64).T
    return 0.7 * x @ np.asarray(decoder.output.kernel[...], np.float64)


def check_top(ids, probabilities, truth):
    """The likeliest ids, in descending order, have their true probabilities."""
    top = ids.shape[-1]
    np.testing.assert_allclose(probabilities, np.sort(truth)[..., ::-1][..., :top], rtol=2e-5)
    np.testing.assert_allclose(np.take_along_axis(truth, ids, -1), probabilities, rtol=2e-5)
    assert all(len(set(row)) == top for row in ids.reshape(-1, top).tolist())


def test_a_lens_is_the_head_after_each_layer(decoder, streams, softmax):
    truth = softmax(head(decoder, streams(decoder, IDS)))
    found = rf.explore.logit_lens(decoder, IDS, top=4)
    assert found.ids.shape == (3, 19, 4) and found.prompt_ids.tolist() == IDS
    check_top(found.ids, found.probabilities, truth)
    assert found.pieces[2][18][0] == f"#{found.ids[2, 18, 0]}"


def test_prompts_of_similar_lengths_share_a_program(decoder):
    rf.explore.logit_lens(decoder, IDS, top=3)
    programs = watch._watch._cache_size()
    for tokens in (17, 18):
        assert rf.explore.logit_lens(decoder, IDS[:tokens], top=3).ids.shape[1] == tokens
    assert watch._watch._cache_size() == programs
    rf.explore.logit_lens(decoder, IDS[:15], top=3)
    assert watch._watch._cache_size() == programs + 1


def test_next_tokens_are_those_of_the_model(decoder, softmax):
    truth = softmax(decoder(jnp.array([IDS]))[0][0])
    found = rf.explore.next_tokens(decoder, IDS, top=7)
    check_top(found.ids, found.probabilities, truth)
    entropy = -(truth * np.log(truth)).sum(-1)
    np.testing.assert_allclose(found.entropy, entropy, rtol=1e-5)
    last = rf.explore.logit_lens(decoder, IDS, top=7)
    np.testing.assert_array_equal(last.ids[-1], found.ids)


def test_statistics_are_those_of_the_streams(decoder, streams):
    decoder = nnx.clone(decoder)
    decoder.blk[1].ffn_down.kernel[...] = decoder.blk[1].ffn_down.kernel[...].at[:, 7].mul(400)
    truth = streams(decoder, IDS)
    found = rf.explore.activation_statistics(decoder, IDS, threshold=2.5)
    rms = np.sqrt(np.square(truth).mean((1, 2)))
    np.testing.assert_allclose(found.rms, rms, rtol=1e-5)
    np.testing.assert_allclose(found.largest, np.abs(truth).max((1, 2)), rtol=1e-5)
    assert found.channel.tolist() == np.abs(truth).max(1).argmax(-1).tolist()
    assert found.channel[1] == 7
    beyond = (np.abs(truth) > 2.5 * rms[:, None, None]).mean((1, 2))
    np.testing.assert_allclose(found.outliers, beyond, rtol=1e-6)
    assert 0 < found.outliers[1] < 0.1


def test_losses_are_those_of_the_model(lm, softmax):
    text = "ROMEO:\nBut soft, what light"
    ids = lm.prompt_ids(text)
    share = softmax(lm.model(jnp.array([ids]))[0][0])
    truth = -np.log([share[i, id] for i, id in enumerate(ids[1:])])
    found = rf.explore.perplexity_by_position(lm, text)
    assert found.ids.tolist() == ids and found.pieces[0] == "ROMEO"
    np.testing.assert_allclose(found.losses, truth, rtol=1e-4, atol=1e-6)
    assert np.isclose(found.perplexity, np.exp(truth.mean()), rtol=1e-5)
    assert found.losses.shape == rf.explore.perplexity_by_position(lm, ids).losses.shape


def test_a_text_has_pieces_and_tables(lm):
    found = rf.explore.next_tokens(lm, "ROMEO:\n<b>", top=3)
    assert "".join(found.prompt_pieces) == "ROMEO:\n<b>"
    assert "<b>" not in found._repr_html_() and "&lt;" in found._repr_html_()
    for value in (
        found,
        rf.explore.logit_lens(lm, "ROMEO:"),
        rf.explore.activation_statistics(lm, "ROMEO:"),
        rf.explore.perplexity_by_position(lm, "ROMEO:\n<b>"),
    ):
        assert len(repr(value)) < 300 and "<script" not in value._repr_html_()


def test_several_streams_are_measured_and_not_read(decoder_of):
    config = DecoderConfig.uniform(
        2, PLAIN, Gated(40), norm_epsilon=1e-5, width=24, vocabulary=61, context_length=64
    )
    layers = tuple(dataclasses.replace(layer, altup=AltUp(3)) for layer in config.layers)
    model = rf.models.Decoder(dataclasses.replace(config, layers=layers), rngs=nnx.Rngs(2))
    for function, name in (
        (rf.explore.logit_lens, "logit_lens"),
        (lambda model, ids: rf.explore.attention_map(model, ids, 0), "attention_map"),
    ):
        with pytest.raises(ValueError, match=f"{name} .* 3"):
            function(model, IDS)
    assert rf.explore.activation_statistics(model, IDS).rms.shape == (2,)
    assert rf.explore.next_tokens(model, IDS, top=2).ids.shape == (19, 2)


@pytest.mark.parametrize(
    "function", [rf.explore.next_tokens, rf.explore.logit_lens, rf.explore.activation_statistics]
)
def test_wrong_prompts_are_named(function, decoder, lm):
    with pytest.raises(TypeError, match="LanguageModel.*'demo'"):
        function("demo", "text")
    with pytest.raises(TypeError, match="Decoder has no tokenizer"):
        function(decoder, "text")
    with pytest.raises(TypeError, match="list of token ids, got 5"):
        function(lm, 5)
    with pytest.raises(TypeError, match="list of token ids, got b'ab'"):
        function(lm, b"ab")
    with pytest.raises(ValueError, match="60.*got 61"):
        function(decoder, [1, 61])
    with pytest.raises(ValueError, match="0 tokens.*at least 1"):
        function(decoder, [])


def test_wrong_numbers_are_named(decoder, lm):
    for function in (rf.explore.next_tokens, rf.explore.logit_lens):
        for top in (0, 62):
            with pytest.raises(ValueError, match=f"top.* 1 .*61.*{top}"):
                function(decoder, IDS, top=top)
    with pytest.raises(ValueError, match="threshold.*above 0.*-1"):
        rf.explore.activation_statistics(decoder, IDS, threshold=-1)
    with pytest.raises(TypeError, match="LanguageModel, got Decoder"):
        rf.explore.perplexity_by_position(decoder, IDS)
    with pytest.raises(ValueError, match="1 tokens.*at least 2"):
        rf.explore.perplexity_by_position(lm, [3])
    with pytest.raises(ValueError, match="513 tokens.*512"):
        rf.explore.perplexity_by_position(lm, [3] * 513)


def test_tokens_are_spans_of_their_text(lm):
    text = "What is <b>, \u00fc?\n"
    for tokenizer in (lm, lm.tokenizer):
        found = rf.explore.tokens(tokenizer, text)
        assert list(found.ids) == lm.tokenizer.encode(text) and len(found) == len(found.pieces)
    assert b"".join(map(lm.tokenizer.piece, found.ids)) == text.encode()
    assert "\\xc3" in found.pieces and repr(found).startswith(f"{len(found)} tokens: 'W")
    assert rf.explore.tokens(lm, found.ids) == found
    page = rf.explore.tokens(lm, "<b>" * 5000)._repr_html_()
    assert "<b>" not in page and "more" in page and len(page) < 200_000
    assert len(repr(rf.explore.tokens(lm, "a" * 5000))) < 1000
    with pytest.raises(ValueError, match="1023, got 1024"):
        rf.explore.tokens(lm, [1024])
    with pytest.raises(TypeError, match="list of token ids, got 5"):
        rf.explore.tokens(lm, 5)
