"""A closed model has given its memory back, and says that it is closed."""

import gc

import jax
import pytest

import rocmforge_jax as rf


def live_bytes() -> int:
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())


def loaded():
    return rf.load("demo", progress=False)


@pytest.mark.core
def test_closing_gives_back_weights_and_caches():
    """Also of a model that something still shows, as a notebook's Out does."""
    before = live_bytes()
    lm = loaded()
    shown = [lm, repr(lm)]
    lm.generate("ROMEO:", max_tokens=3, temperature=0)
    lm.embed("a", pooling="mean")
    of_model = sum(array.nbytes for array in jax.tree.leaves(lm.model))
    held = live_bytes() - before
    assert held > of_model > 1e6  # the cache of the text beside the weights
    lm.close()
    left = live_bytes() - before
    assert left < 0.01 * of_model, (left, of_model)
    assert repr(shown[0]) == "<LanguageModel: closed>"


@pytest.mark.core
def test_a_with_block_closes():
    before = live_bytes()
    with loaded() as lm:
        assert live_bytes() - before > 1e6
    assert live_bytes() - before < 1e5
    with pytest.raises(ZeroDivisionError), loaded() as lm:
        1 / 0  # noqa: B018
    assert repr(lm) == "<LanguageModel: closed>"
    assert lm._repr_html_() == "&lt;LanguageModel: closed&gt;"


@pytest.mark.core
@pytest.mark.parametrize(
    "use",
    [
        lambda lm: lm.model,
        lambda lm: lm.engine,
        lambda lm: lm.generate("a"),
        lambda lm: lm.chat([{"role": "user", "content": "a"}]),
        lambda lm: lm.embed("a", pooling="mean"),
        lambda lm: lm.perplexity("a b c"),
        lambda lm: lm.warm_up(),
        lambda lm: lm.cache("a b"),
        lambda lm: lm.load_cache("a"),
    ],
)
def test_a_closed_model_computes_nothing(use):
    lm = closed()
    with pytest.raises(ValueError, match="LanguageModel is closed"):
        use(lm)


def closed():
    lm = loaded()
    lm.close()
    lm.close()  # once more does nothing
    return lm


@pytest.mark.core
def test_a_closed_model_keeps_its_tokenizer_and_takes_another_model():
    lm, other = closed(), loaded()
    assert lm.tokenizer.encode("ROMEO") == other.tokenizer.encode("ROMEO")
    lm.model = other.model
    ask = dict(max_tokens=3, temperature=0)
    assert lm.generate("ROMEO:", **ask) == other.generate("ROMEO:", **ask)
