"""perplexity: the number of llama.cpp's definition."""

import json

import numpy as np
import pytest

import rocmforge_jax
from rocmforge_jax.locate import DEMO

pytestmark = pytest.mark.core


@pytest.fixture(scope="module")
def text():
    """Ordinary prose of the demo's kind; 700 tokens and some."""
    romeo = "ROMEO:\nI have a soul of lead so stakes me to the ground I cannot move.\n\n"
    return (romeo + "MERCUTIO:\nYou are a lover; borrow Cupid's wings.\n\n") * 14


@pytest.fixture(scope="module")
def logprobs(text):
    """The loss of each token, in windows of 64: float64 from the plain decoder."""
    import jax
    import jax.numpy as jnp

    lm = rocmforge_jax.load(DEMO)
    ids = np.array(lm.tokenizer.encode(text))
    windows = ids[: len(ids) // 64 * 64].reshape(-1, 64)
    logits = np.asarray(
        jax.jit(lambda model, ids: model(ids)[0])(lm.model, jnp.asarray(windows)), np.float64
    )
    shifted = logits - logits.max(-1, keepdims=True)
    normed = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return np.take_along_axis(normed[:, :-1], windows[:, 1:, None], -1)[..., 0]


def test_only_second_halves_count(run, tmp_path, text, logprobs):
    (tmp_path / "text").write_text(text)
    result = json.loads(run("perplexity", tmp_path / "text", "--window", 64, "--json").out)
    losses = -logprobs[:, 32:].ravel()
    assert result["tokens"] == losses.size
    assert (result["windows"], result["window"]) == (len(logprobs), 64)
    assert result["value"] == pytest.approx(np.exp(losses.mean()), rel=1e-5)
    assert result["error"] == pytest.approx(
        losses.std() / np.sqrt(losses.size - 1) * np.exp(losses.mean()), rel=1e-4
    )


def test_a_short_text_is_refused_with_both_numbers(run, tmp_path):
    (tmp_path / "text").write_text("ROMEO:")
    ran = run("perplexity", tmp_path / "text")
    assert (ran.code, ran.out) == (2, "") and "tokens, one window needs 512" in ran.err
    (tmp_path / "text").write_text("ROMEO: " * 20)
    ran = run("perplexity", tmp_path / "text")
    count = int(ran.err.partition("the text has ")[2].split()[0])
    assert f"give --window {count} or less" in ran.err
    assert run("perplexity", tmp_path / "text", "--window", count).code == 0


@pytest.mark.parametrize("window", [3, 513])
def test_a_window_outside_the_context_is_refused(run, tmp_path, text, window):
    (tmp_path / "text").write_text(text)
    ran = run("perplexity", tmp_path / "text", "--window", window)
    assert ran.code == 2 and f"window must be an integer from 4 to 512, got {window}" in ran.err
