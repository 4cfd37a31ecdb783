"""Tensors follow what is in the file: fused or not, with biases or not, in any type and shape."""

import ml_dtypes
import numpy as np
import pytest

from rocmforge_jax import formats
from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.models import load_decoder

pytestmark = pytest.mark.core

TOKENS = np.arange(0, 40, 2, dtype=np.int32)[None]
RANDOM = np.random.default_rng(3)
PARTS = {"attn_q": 32, "attn_k": 16, "attn_v": 16}


@pytest.fixture
def found(small_file, logits):
    """found(tensors): the logits of the small file with these tensors."""
    return lambda tensors=(): logits(load_decoder(small_file(tensors=tensors)), TOKENS)


@pytest.fixture
def weights(small_file):
    """The small file's weights by name."""
    return {name: tensor.data.view("<f4") for name, tensor in small_file().tensors.items()}


def f32(values):
    return "F32", np.ascontiguousarray(values, np.float32)


def normal(*shape):
    return RANDOM.normal(0, 0.5, shape).astype(np.float32)


def fused(weights):
    """attn_qkv in place of its parts."""
    stacked = np.concatenate([weights[f"blk.0.{name}.weight"] for name in PARTS])
    return {f"blk.0.{name}.weight": None for name in PARTS} | {
        "blk.0.attn_qkv.weight": f32(stacked)
    }


def test_fused_weights_with_biases_fused_or_not(found, weights):
    """llama.cpp: "Fused weights may coexist with separate Q/K/V biases"."""
    biases = {name: normal(size) for name, size in PARTS.items()}
    apart = {f"blk.0.{name}.bias": f32(bias) for name, bias in biases.items()}
    whole = {"blk.0.attn_qkv.bias": f32(np.concatenate(list(biases.values())))}
    expected = found(apart)
    assert not np.allclose(expected, found())
    # Other programs add the same float32 numbers in another order.
    np.testing.assert_allclose(found(fused(weights) | apart), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found(fused(weights) | apart), found(fused(weights) | whole))
    with pytest.raises(GGUFError, match="blk.0.attn_q.bias is not part of the architecture"):
        found(fused(weights) | apart | whole)
    with pytest.raises(GGUFError, match="blk.0.attn_k.bias is not part of the architecture"):
        found(fused(weights) | {"blk.0.attn_k.bias": apart["blk.0.attn_k.bias"]})
    with pytest.raises(GGUFError, match=r"attn_qkv.bias has shape \[65\], expected \[64\]"):
        found(fused(weights) | apart | {"blk.0.attn_v.bias": f32(normal(17))})


@pytest.mark.parametrize("change", ["matrix", "two types", "quantised"])
def test_biases_that_cannot_be_joined(found, weights, change):
    biases = {f"blk.0.{name}.bias": f32(normal(size)) for name, size in PARTS.items()}
    biases["blk.0.attn_q.bias"] = {
        "matrix": f32(normal(8, 4)),
        "two types": ("F16", np.zeros(32, np.float16)),
        "quantised": ("Q8_0", formats.quantize(normal(32), "Q8_0")),
    }[change]
    with pytest.raises(GGUFError, match=r"blk.0.attn_qkv.bias \[64\] is missing"):
        found(fused(weights) | biases)


def test_a_gate_fused_with_the_units(found, weights):
    both = [weights[f"blk.0.ffn_{name}.weight"] for name in ("gate", "up")]
    tensors = {"blk.0.ffn_gate.weight": None, "blk.0.ffn_up.weight": f32(np.concatenate(both))}
    # Other programs add the same float32 numbers in another order.
    np.testing.assert_allclose(found(tensors), found(), rtol=1e-5, atol=1e-6)


def test_an_output_bias(found, weights):
    bias = normal(48)
    tensors = {"output.weight": f32(weights["token_embd.weight"]), "output.bias": f32(bias)}
    # Other programs add the same float32 numbers in another order.
    np.testing.assert_allclose(found(tensors), found() + bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(32, 1), (1, 32), (1, 1, 32), (32, 1, 1), (1, 32, 1, 1)])
def test_vectors_with_dimensions_of_1(found, shape):
    bias, norm = normal(32), normal(32)
    names = "blk.0.attn_output.bias", "blk.0.ffn_norm.weight"
    flat = dict(zip(names, map(f32, (bias, norm))))
    reshaped = dict(zip(names, (f32(vector.reshape(shape)) for vector in (bias, norm))))
    np.testing.assert_array_equal(found(reshaped), found(flat))


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0"])
def test_matrices_with_dimensions_of_1(found, weights, kind):
    """Packed ones too, by whatever computes here."""
    values = weights["blk.0.ffn_up.weight"]
    dtypes = {"F32": np.float32, "F16": np.float16}
    packed = values.astype(dtypes[kind]) if kind in dtypes else formats.quantize(values, kind)
    flat, reshaped = packed, np.asarray(packed).reshape(1, 64, 1, -1)
    expected = found({"blk.0.ffn_up.weight": (kind, flat)})
    np.testing.assert_array_equal(found({"blk.0.ffn_up.weight": (kind, reshaped)}), expected)


def test_a_dimension_of_1_does_not_hide_another_shape(found):
    for shape in ((16, 2), (31, 1), (1, 33), (4, 8)):
        with pytest.raises(GGUFError, match=r"ffn_norm.weight has shape \[.*, expected \[32\]"):
            found({"blk.0.ffn_norm.weight": f32(normal(*shape))})


@pytest.mark.parametrize("name", ["blk.0.attn_norm.weight", "output_norm.weight", "attn_q.bias"])
@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q5_1", "Q4_0"])
def test_vectors_of_any_type_are_the_numbers_that_they_hold(found, name, kind):
    """The logits are those of a file with the rounded numbers in float32."""
    name = name if "norm" in name else f"blk.0.{name}"
    values = normal(32) + 1
    if kind in ("F16", "BF16"):
        stored = values.astype(np.float16 if kind == "F16" else ml_dtypes.bfloat16)
        rounded = stored.astype(np.float32)
    else:
        stored = formats.quantize(values, kind)
        rounded = np.asarray(formats.dequantize(stored, kind))
    assert (rounded != values).any()
    np.testing.assert_array_equal(found({name: (kind, stored)}), found({name: f32(rounded)}))


def test_biases_of_experts_may_be_quantised(small_file, logits):
    keys = {"llama.expert_count": 4, "llama.expert_used_count": 2}
    tensors = {f"blk.0.ffn_{part}.weight": None for part in ("gate", "up", "down")} | {
        "blk.0.ffn_gate_inp.weight": f32(normal(4, 32)),
        "blk.0.ffn_gate_exps.weight": f32(normal(4, 64, 32)),
        "blk.0.ffn_up_exps.weight": f32(normal(4, 64, 32)),
        "blk.0.ffn_down_exps.weight": f32(normal(4, 32, 64)),
    }
    stored = formats.quantize(normal(4, 32), "Q8_0")
    results = [
        logits(load_decoder(small_file(keys, tensors | {"blk.0.ffn_down_exps.bias": bias})), TOKENS)
        for bias in (("Q8_0", stored), f32(formats.dequantize(stored, "Q8_0")))
    ]
    np.testing.assert_array_equal(*results)


def test_rope_factors_with_dimensions_of_1(found):
    factors = np.array([1, 2, 3, 5], np.float32)
    expected = found({"rope_freqs.weight": f32(factors)})
    assert not np.allclose(expected, found())
    for shape in ((4, 1), (1, 4)):
        tensors = {"rope_freqs.weight": f32(factors.reshape(shape))}
        np.testing.assert_array_equal(found(tensors), expected)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["v.blk.0.attn_q.weight", "mm.0.weight"], "2 tensors for images and for images or sound"),
        (["cls.output.weight"], "1 tensors of a classifier"),
        (["dense_2.weight", "dense_3.weight"], "2 tensors for embeddings of texts"),
    ],
)
def test_what_computes_no_logits_is_left_out_and_said(found, names, message):
    with pytest.warns(UserWarning, match=f"small.gguf: {message} are not loaded"):
        logits = found({name: f32(normal(5, 7)) for name in names})
    np.testing.assert_array_equal(logits, found())
