"""Merged adapters: dense or packed weights that do the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rocmforge_jax as rf
from rocmforge_jax import formats
from rocmforge_jax.adapters.wrap import adapters
from rocmforge_jax.nn import Linear


def weight(layer):
    """What the layer multiplies with, float64 [in, out]."""
    kernel = layer.base_module.kernel
    dense = rf.dequantize(kernel) if isinstance(kernel, rf.QParam) else kernel.get_value()
    a, b = (np.asarray(m.get_value(), np.float64) for m in (layer.lora_a, layer.lora_b))
    return np.asarray(dense, np.float64) + layer.alpha / layer.rank * a @ b


@pytest.fixture
def adapted(decoder, shaken):
    return shaken(rf.lora(decoder("Q4_0"), 3, ["*.attn_q", "blk.1.ffn_down"], alpha=5))


def test_dense_weights_are_the_sums(adapted):
    merged = rf.merge_lora(adapted)
    for name, layer in adapters(adapted).items():
        _, i, of_layer, _ = name.split(".")
        found = getattr(merged.blk[int(i)], of_layer)
        assert type(found) is Linear and type(found.kernel) is nnx.Param
        np.testing.assert_allclose(found.kernel.get_value(), weight(layer), rtol=0, atol=1e-6)
    assert not adapters(merged) and len(adapters(adapted)) == 4
    half = rf.merge_lora(adapted, dtype=jnp.bfloat16)
    assert half.blk[0].attn_q.kernel.dtype == jnp.bfloat16
    for old, new in zip(*(jax.tree.leaves(nnx.state(m.blk[2].attn_k)) for m in (adapted, merged))):
        assert old is new


@pytest.mark.parametrize("type_name, expected", [("Q8_0", "Q8_0"), ("same", "Q4_0")])
def test_packed_weights_are_the_quantised_sums(adapted, type_name, expected):
    merged = rf.merge_lora(adapted, type_name)
    for name, layer in adapters(adapted).items():
        _, i, of_layer, _ = name.split(".")
        found = getattr(merged.blk[int(i)], of_layer).kernel.get_value()
        assert found.type_name == expected
        rows = np.ascontiguousarray(weight(layer).T.astype(np.float32))
        values = np.asarray(formats.dequantize(formats.quantize(rows, expected), expected))
        # One in thousands of sums rounds to the other side of a code's boundary.
        differ = ~np.isclose(np.asarray(rf.dequantize(found.T)), values, rtol=0, atol=1e-5)
        assert differ.mean() < 2e-3


def test_the_same_type_leaves_dense_weights_dense(decoder, shaken):
    model = shaken(rf.lora(decoder(None), 2, "blk.0.attn_v"))
    merged = rf.merge_lora(model, "same")
    np.testing.assert_allclose(
        merged.blk[0].attn_v.kernel.get_value(), weight(model.blk[0].attn_v), rtol=0, atol=1e-6
    )


def test_an_output_scale_is_kept(decoder, shaken, normal):
    model = decoder(None)
    model.blk[0].attn_k.output_scale = nnx.Param(jnp.array([0.37], jnp.float32))
    layer = shaken(rf.lora(model, 2, "blk.0.attn_k")).blk[0].attn_k
    x = jnp.asarray(normal(5, 64))
    model.blk[0].attn_k = layer
    merged = rf.merge_lora(model).blk[0].attn_k
    np.testing.assert_allclose(merged(x), layer(x), rtol=0, atol=1e-5)


def test_what_is_wrong_is_refused(adapted, decoder):
    with pytest.raises(ValueError, match="no adapter to merge"):
        rf.merge_lora(decoder())
    with pytest.raises(ValueError, match="F16.*dtype"):
        rf.merge_lora(adapted, "F16")
    with pytest.raises(ValueError, match=r"blk\.1\.ffn_down\.weight has rows of 96.*256"):
        rf.merge_lora(adapted, "Q6_K")
    with pytest.raises(TypeError, match="Decoder.*str"):
        rf.remove_lora("demo")
