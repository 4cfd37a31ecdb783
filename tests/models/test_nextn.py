"""Blocks for multi-token prediction: what loads them, and what they refuse."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rocmforge_jax as rf
from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.models import load_decoder
from tests.models.synthetic import IDS, Case
from tests.models.synthetic_cases import NEXTN
from tests.models.synthetic_shapes import (
    EXPERT_HIDDEN,
    EXPERT_KEYS,
    KEYS,
    RMS,
    WIDTH,
    attention,
    experts,
    file,
    head_norms,
    nextn,
    norm,
)

pytestmark = pytest.mark.core

QWEN35 = NEXTN[0]
TOKENS = IDS[None, :19]


def load(case, tmp_path, **options):
    options = dict(dtype=jnp.float32, backend="xla", activations="float") | options
    return load_decoder(case.write(tmp_path / "file.gguf"), **options)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return load(QWEN35, tmp_path_factory.mktemp("nextn"), nextn=True)


def test_a_decoder_computes_the_same_with_them(decoder, tmp_path):
    with pytest.warns(UserWarning, match="17 tensors of 1 blocks for multi-token prediction"):
        without = load(QWEN35, tmp_path)
    assert without.nextn == () and len(decoder.nextn) == 1
    expected, _ = without(TOKENS)
    np.testing.assert_array_equal(decoder(TOKENS)[0], expected)
    hidden_BTD, _ = decoder.hidden(TOKENS)
    np.testing.assert_allclose(decoder.logits(hidden_BTD), expected, rtol=1e-5, atol=1e-6)


def test_hidden_numbers_go_on_from_a_cache(decoder):
    expected, _ = decoder.hidden(TOKENS)
    first, cache = decoder.hidden(TOKENS[:, :12], decoder.init_cache(1, 21))
    second, cache = decoder.hidden(TOKENS[:, 12:], cache)
    assert cache.lengths_B.tolist() == [19]
    found = np.concatenate([first, second], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_ragged_batch(decoder):
    """Padding is seen by no token, and what a sequence holds differs from its neighbour's."""
    (block,), lengths = decoder.nextn, np.array([11, 18])
    hidden_BTD, _ = decoder.hidden(TOKENS[:, :-1])
    expected, _, _ = block.predict(decoder, hidden_BTD, TOKENS[:, 1:])
    both = np.repeat(np.asarray(hidden_BTD), 2, axis=0)
    both[0, 11:] = 1e3
    tokens = np.repeat(TOKENS[:, 1:], 2, axis=0)
    cache = block.init_cache(2, 23)
    logits, _, cache = block.predict(decoder, both, tokens, cache, lengths_B=lengths)
    assert cache.lengths_B.tolist() == [11, 18]
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(logits[row, :length], expected[0, :length], rtol=1e-4, atol=1e-5)
    again, _, _ = block.predict(decoder, both[1:, 11:12], tokens[1:, 11:12], cache.row(0))
    np.testing.assert_allclose(again[0, 0], expected[0, 11], rtol=1e-4, atol=1e-5)


def test_under_jit_tokens_beyond_the_cache_give_nan(decoder):
    (block,) = decoder.nextn
    hidden_BTD, _ = decoder.hidden(TOKENS[:, :4])
    step = jax.jit(lambda cache: block.predict(decoder, hidden_BTD, TOKENS[:, 1:5], cache))
    logits, _, cache = step(block.init_cache(1, 7))
    assert np.isfinite(logits).all()
    logits, hidden_BTD, _ = step(cache)
    assert np.isnan(logits).all() and np.isnan(hidden_BTD).all()


def test_ling_2_has_a_norm_of_another_name(tmp_path):
    """A block computes as a decoder of one layer does, whose embedding is the block's input."""
    layer = (
        norm("attn_norm")
        | norm("ffn_norm")
        | attention(fused=True)
        | head_norms()
        | experts(shared=EXPERT_HIDDEN)
        | {"exp_probs_b.bias": (8,)}
    )
    keys = KEYS | RMS | EXPERT_KEYS | {"expert_shared_count": 1, "expert_gating_func": 2}
    predictor = layer | nextn() | norm("layer_output_norm")
    counts = {"block_count": 2, "nextn_predict_layers": 1}
    both = Case("ling", "bailingmoe2", keys | counts, file(layer, predictor))
    decoder = load(both, tmp_path, nextn=True)
    hidden_BTD, _ = decoder.hidden(TOKENS[:, :-1])
    logits, _, _ = decoder.nextn[0].predict(decoder, hidden_BTD, TOKENS[:, 1:])

    def values(name):
        return np.float64(both.values_of(name))

    def normed(x, name):
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-5) * values(name)

    embedded = normed(values("token_embd.weight")[TOKENS[0, 1:]], "blk.1.nextn.enorm.weight")
    hidden = normed(np.float64(hidden_BTD[0]), "blk.1.nextn.hnorm.weight")
    read_TD = np.concatenate([embedded, hidden], axis=-1) @ values("blk.1.nextn.eh_proj.weight").T
    renamed = {f"blk.0.{name}": lambda *_, n=name: values(f"blk.1.{n}") for name in layer} | {
        "token_embd.weight": lambda *_: np.pad(read_TD, ((0, 67 - len(read_TD)), (0, 0))),
        "output_norm.weight": lambda *_: values("blk.1.layer_output_norm.weight"),
        "output.weight": lambda *_: values("output.weight"),
    }
    shapes = file(layer)
    alone = Case("alone", "bailingmoe2", keys | {"block_count": 1}, shapes, values=renamed)
    expected, _ = load(alone, tmp_path)(np.arange(len(read_TD))[None])
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_blocks_follow_one_another(tmp_path):
    """The second one reads what the first one computed, and takes the tokens one further on."""
    shapes = dict(QWEN35.shapes)
    shapes |= {
        name.replace("blk.2.", "blk.3."): shape
        for name, shape in shapes.items()
        if name.startswith("blk.2.")
    }
    counts = {"block_count": 4, "nextn_predict_layers": 2}
    case = dataclasses.replace(QWEN35, keys=QWEN35.keys | counts, shapes=shapes)
    decoder = load(case, tmp_path, nextn=True)
    hidden_BTD, _ = decoder.hidden(TOKENS[:, :-2])
    _, read_BTD, _ = decoder.nextn[0].predict(decoder, hidden_BTD, TOKENS[:, 1:-1])
    logits, _, _ = decoder.nextn[1].predict(decoder, read_BTD, TOKENS[:, 2:])
    assert logits.shape == (1, 17, 67) and read_BTD.shape == (1, 17, WIDTH)
    other, _, _ = decoder.nextn[1].predict(decoder, hidden_BTD, TOKENS[:, 2:])
    assert np.abs(np.asarray(logits - other)).max() > 0.1


def test_hidden_numbers_that_do_not_fit(decoder):
    hidden_BTD = jnp.zeros((1, 5, WIDTH + 1))
    with pytest.raises(ValueError, match=r"hidden must be \[1, 5, 48\] .* got \[1, 5, 49\]"):
        decoder.nextn[0].predict(decoder, hidden_BTD, TOKENS[:, :5])
    with pytest.raises(ValueError, match="tokens have the id 67, the vocabulary has 67"):
        decoder.nextn[0].predict(decoder, jnp.zeros((1, 1, WIDTH)), np.array([[67]]))


def test_a_file_without_them(small_file):
    with pytest.raises(GGUFError, match="blocks for multi-token prediction of llama"):
        load_decoder(small_file(), nextn=True)
    with pytest.raises(GGUFError, match="blocks for multi-token prediction of llama"):
        rf.load("demo", nextn=True, progress=False)
    with pytest.raises(TypeError, match="nextn .* 'yes'"):
        rf.load("demo", nextn="yes")


def test_a_file_of_the_family_without_them(tmp_path):
    shapes = {n: shape for n, shape in QWEN35.shapes.items() if not n.startswith("blk.2.")}
    keys = QWEN35.keys | {"block_count": 2, "nextn_predict_layers": 0}
    case = dataclasses.replace(QWEN35, keys=keys, shapes=shapes)
    with pytest.raises(GGUFError, match="qwen35.nextn_predict_layers is 0"):
        load(case, tmp_path, nextn=True)


def test_a_block_that_lacks_a_tensor(tmp_path):
    shapes = {n: shape for n, shape in QWEN35.shapes.items() if "eh_proj" not in n}
    case = dataclasses.replace(QWEN35, shapes=shapes)
    with pytest.raises(GGUFError, match=r"blk.2.nextn.eh_proj.weight \[48, 96\] is missing"):
        load(case, tmp_path, nextn=True)
