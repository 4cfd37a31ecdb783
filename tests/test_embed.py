"""Texts to vectors: `LanguageModel.embed`, and what refuses."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rocmforge_jax as rf
from rocmforge_jax.generate import Embedder
from rocmforge_jax.gguf import open_gguf
from rocmforge_jax.models import load_decoder

#: Of about 1 to 40 tokens, out of order, with one twice.
TEXTS = [
    "The quick brown fox jumps over the lazy dog, and then it sleeps.",
    "a",
    "What is the capital of France? " * 3,
    "a",
    "héllo wörld 你好",
    "Paris",
]


def loaded(folder, name, **options):
    with warnings.catch_warnings():  # its [CLS] is not the default one
        warnings.filterwarnings("ignore", ".*cls_token_id")
        path = folder / "families" / f"{name}.gguf"
        return rf.load(path, backend="xla", activations="float", progress=False, **options)


def jitted(model, function, ids):
    """Returns function(model, ids of one text [1, T]) as NumPy, compiled."""
    graphdef, state = nnx.split(model)
    run = jax.jit(lambda state, ids: function(nnx.merge(graphdef, state), ids))
    return np.asarray(run(state, jnp.array([ids], jnp.int32)))[0]


@pytest.fixture(scope="module")
def encoder(whole_reference):
    return loaded(whole_reference, "bert.Q8_0")


@pytest.fixture(scope="module")
def demo():
    return rf.load("demo", progress=False)


def test_a_text_of_500_tokens_has_llama_cpps_vector(whole_reference):
    """Beside shorter texts."""
    folder = whole_reference / "families"
    index = json.loads((folder / "index.json").read_text())
    ids = index["ids"][: index["files"]["bert.Q8_0"]["n_ids"]]
    decoder = load_decoder(open_gguf(folder / "bert.Q8_0.gguf"), backend="xla", activations="float")
    texts = [ids[:9], ids, ids[:300]]
    (_, vector, _) = Embedder(decoder, 512).embed(texts, pooling="cls", normalize=False)
    expected = np.load(folder / "bert.Q8_0.npy")[0]
    assert np.linalg.norm(vector - expected) / np.linalg.norm(expected) < 5e-4


@pytest.mark.parametrize("pooling", [None, "mean", "last"])
def test_lists_and_single_texts_agree(pooling, encoder):
    vectors = encoder.embed(TEXTS, pooling=pooling)
    assert vectors.shape == (len(TEXTS), 256) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(vectors[1], vectors[3])
    for text, vector in zip(TEXTS, vectors):
        one = encoder.embed(text, pooling=pooling)
        assert one.shape == (256,)
        np.testing.assert_allclose(one, vector, atol=1e-6)
    np.testing.assert_array_equal(encoder.embed(iter(TEXTS), pooling=pooling), vectors)


def test_vectors_are_those_of_the_module(encoder):
    """The file's pooling is that of the first token; ids begin and end with special ones."""
    ids = encoder.tokenizer.encode(TEXTS[0], add_special=True)
    assert ids[-1] == encoder.tokenizer.sep_id
    expected = jitted(encoder.model, lambda model, ids: model.embed(ids), ids)
    found = encoder.embed(TEXTS[0], normalize=False)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    normalized = encoder.embed(TEXTS[0])
    np.testing.assert_allclose(normalized, found / np.linalg.norm(found), atol=1e-6)


def test_a_vector_of_each_token(encoder):
    states = encoder.embed(TEXTS, pooling="none", normalize=False)
    for text, of_text in zip(TEXTS, states):
        count = len(encoder.tokenizer.encode(text, add_special=True))
        assert of_text.shape == (count, 256)
        first = encoder.embed(text, normalize=False)
        np.testing.assert_allclose(of_text[0], first, rtol=1e-5, atol=1e-5)


def test_no_texts(encoder):
    assert encoder.embed([]).shape == (0, 256)
    assert encoder.embed([], pooling="none") == []


@pytest.mark.parametrize(
    ("texts", "options", "error", "message"),
    [
        (3, {}, TypeError, "embed takes a text or a list of texts, got int"),
        (["a", b"b"], {}, TypeError, "embed .* a list with bytes"),
        ("a", dict(pooling="max"), ValueError, "'max'"),
        ("a", dict(pooling="rank"), ValueError, "bert has no classifier"),
        ("a", dict(normalize="yes"), TypeError, "normalize"),
        ("a", dict(normalise=True), TypeError, "normalise.*normalize"),
        (["a", "b " * 600], {}, ValueError, "text 1 has 602 tokens.* 512.*truncate=True"),
    ],
)
def test_wrong_arguments_are_refused(texts, options, error, message, encoder):
    with pytest.raises(error, match=message):
        encoder.embed(texts, **options)


def test_a_text_that_is_cut_off(encoder):
    """Keeps the token that closes a text."""
    long = "b " * 600
    begun = encoder.tokenizer.encode(long, add_special=True)
    ids = begun[:511] + begun[-1:]
    expected = jitted(encoder.model, lambda model, ids: model.embed(ids, pooling="mean"), ids)
    found = encoder.embed([long, "b"], truncate=True, pooling="mean", normalize=False)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "call",
    [
        lambda lm: lm.generate("a"),
        lambda lm: lm.generate("a", stream=True),
        lambda lm: lm.chat([{"role": "user", "content": "a"}]),
        lambda lm: lm.perplexity("a"),
        lambda lm: lm.warm_up(),
        lambda lm: lm.engine.generate([[1]]),
        lambda lm: lm.engine.prefill([[1]]),
        lambda lm: lm.engine.open(1, 1),
        lambda lm: lm.engine.score(np.ones((1, 5), np.int32)),
    ],
)
def test_an_encoder_generates_no_text(call, encoder):
    with pytest.raises(ValueError, match="bert is an encoder.* embed"):
        call(encoder)


@pytest.mark.core
def test_a_decoder_embeds_when_it_is_told_how(demo):
    with pytest.raises(ValueError, match="llama names no pooling"):
        demo.embed("ROMEO:")
    ids = demo.tokenizer.encode("ROMEO: what light?", add_special=True)
    states = jitted(demo.model, lambda model, ids: model.hidden(ids)[0], ids)
    for pooling, expected in (("mean", states.mean(axis=0)), ("last", states[-1])):
        found = demo.embed(["JULIET", "ROMEO: what light?"], pooling=pooling, normalize=False)[1]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert len(demo.generate("ROMEO:", max_tokens=3).ids) == 3


@pytest.mark.core
def test_text_without_tokens_is_refused(demo):
    assert not demo.tokenizer.add_bos
    with pytest.raises(ValueError, match="text 1 has no tokens"):
        demo.embed(["a", ""], pooling="mean")


@pytest.mark.core
def test_another_model_makes_other_vectors(demo):
    """And a damaged one is said to be so, with the number of the text."""
    model, before = demo.model, demo.embed("ROMEO", pooling="mean")
    changed = rf.load("demo", progress=False).model
    scale = changed.output_norm.scale
    try:
        scale.set_value(scale.get_value() * jnp.linspace(0, 2, len(scale.get_value())))
        demo.model = changed
        assert np.abs(demo.embed("ROMEO", pooling="mean") - before).max() > 1e-2
        scale.set_value(scale.get_value() * jnp.nan)
        demo.model = changed
        with pytest.raises(FloatingPointError, match="text 0 is not finite"):
            demo.embed("ROMEO", pooling="mean")
    finally:
        demo.model = model
    np.testing.assert_array_equal(demo.embed("ROMEO", pooling="mean"), before)


@pytest.mark.core
def test_few_programs_are_compiled(demo):
    """Texts of 1 to 60 tokens are of three lengths."""
    embedder = Embedder(demo.model, 128)
    shapes = set()
    original = embedder._embed
    embedder._embed = lambda leaves, tokens, *rest: (
        shapes.add(tokens.shape) or original(leaves, tokens, *rest)
    )
    texts = [[1] * length for length in range(1, 61)]
    found = embedder.embed(texts, pooling="last", normalize=True)
    assert {tokens for _, tokens in shapes} == {16, 32, 64}
    assert len(shapes) <= 4 and len(found) == 60 and all(np.isfinite(v).all() for v in found)
