"""Saved folders beside transformers: equal logits, ids and chat texts; `make test-hf`."""

import jax.numpy as jnp
import numpy as np
import pytest

import rocmforge_jax as rf
from tests.export import fresh

# Libraries warn of what they are about to change.
pytestmark = [pytest.mark.hf, pytest.mark.filterwarnings("default")]
TEXTS = ("ROMEO: what light? 12,345 naïve\n\n  x", " Hello, wie geht's?", "\t日本 <|im_end|> 1")


@pytest.mark.parametrize("name", fresh.FAMILIES)
def test_logits_of_a_family(name, loaded, logits_of, tmp_path, distance):
    """Longer than a window, in float32: the largest error seen is 1e-6."""
    decoder = fresh.decoder(name)
    ids = np.random.default_rng(1).integers(0, 91, (2, 100))
    rf.save(decoder, tmp_path / "model")
    theirs = logits_of(loaded(tmp_path / "model"), ids)
    assert distance(theirs, np.float64(decoder(jnp.asarray(ids))[0])) < 1e-5


def test_half_precision(loaded, logits_of, tmp_path, distance):
    """Weights in bfloat16, computed in float32: 8 bits of them, so 4e-3 a product."""
    decoder = fresh.decoder("qwen3")
    ids = np.random.default_rng(2).integers(0, 91, (1, 50))
    rf.save(decoder, tmp_path / "model", types="BF16")
    theirs = logits_of(loaded(tmp_path / "model"), ids)
    error = distance(theirs, np.float64(decoder(jnp.asarray(ids))[0]))
    assert 1e-4 < error < 2e-2


def test_a_whole_model(transformers, loaded, logits_of, tmp_path, distance):
    """Packed weights, byte-level BPE, ids and logits."""
    lm = rf.load("demo", progress=False, activations="float")
    rf.save(lm, tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    for text in TEXTS:
        ids = lm.tokenizer.encode(text, add_special=True)
        assert tokenizer(text)["input_ids"] == ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == lm.tokenizer.decode(
            ids, skip_special=True
        )
    ids = np.asarray([lm.tokenizer.encode(TEXTS[0] * 5, add_special=True)])
    theirs = logits_of(loaded(tmp_path / "model"), ids)
    assert distance(theirs, np.float64(lm.model(jnp.asarray(ids))[0])) < 1e-5
