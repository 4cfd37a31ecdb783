"""A loaded model is an NNX module: split, merge, jit, grad; its paths are the file's names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rocmforge_jax import formats
from rocmforge_jax.gguf import open_gguf
from rocmforge_jax.models import load_decoder, tensor_name
from rocmforge_jax.quant import QParam, QTensor, dequantize

pytestmark = pytest.mark.core
TOKENS = np.arange(12, dtype=np.int32)[None]


def packed_tensor(values, kind):
    return kind, formats.quantize(np.asarray(values, np.float32), kind)


@pytest.fixture
def small(small_file):
    """A file with packed matrices of four types, loaded."""
    random = np.random.default_rng(2)

    def draw(*shape):
        return random.normal(0, 0.3, shape)

    tensors = {
        "blk.0.attn_q.weight": packed_tensor(draw(32, 32), "Q4_0"),
        "blk.0.ffn_up.weight": packed_tensor(draw(64, 32), "Q5_1"),
        "blk.0.ffn_down.weight": packed_tensor(draw(32, 64), "Q8_0"),
        "token_embd.weight": packed_tensor(draw(48, 32), "Q4_1"),
    }
    return load_decoder(small_file(tensors=tensors))


def test_split_and_merge(small, logits):
    graphdef, state = nnx.split(small)
    np.testing.assert_array_equal(logits(nnx.merge(graphdef, state), TOKENS), logits(small, TOKENS))
    packed, params = nnx.state(small, QParam), nnx.state(small, nnx.Param)
    assert len(nnx.to_flat_state(packed)) == 4 and len(nnx.to_flat_state(params)) == 7


def test_jit_of_the_module(small, logits):
    got = nnx.jit(lambda decoder, tokens: decoder(tokens)[0])(small, TOKENS)
    np.testing.assert_allclose(got, logits(small, TOKENS), rtol=1e-5, atol=1e-5)


def test_grad_takes_the_params_through_packed_weights(small):
    """The gradients of the norms and dense kernels are those of the model with its weights
    dequantised.
    """

    def loss(decoder):
        return (decoder(TOKENS)[0] ** 2).mean()

    packed = nnx.jit(nnx.grad(loss))(small)

    dense = nnx.clone(small)
    dense.token_embd.embedding = nnx.Param(dequantize(dense.token_embd.embedding))
    for linear in (dense.blk[0].attn_q, dense.blk[0].ffn_up, dense.blk[0].ffn_down):
        linear.kernel = nnx.Param(dequantize(linear.kernel))
    expected = dict(nnx.to_flat_state(nnx.jit(nnx.grad(loss))(dense)))
    got = dict(nnx.to_flat_state(packed))
    assert len(got) == 7 and len(expected) == 11
    for path, gradient in got.items():
        assert np.abs(expected[path].get_value()).max() > 0
        np.testing.assert_allclose(
            gradient.get_value(), expected[path].get_value(), rtol=2e-4, atol=1e-6
        )


class Doubled(nnx.Module):
    """A module of a user's in the place of a linear layer."""

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, x, *args):
        return 2 * self.inner(x, *args)


@pytest.mark.parametrize(
    "name", ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
)
def test_each_linear_can_be_replaced(small, logits, name):
    """What stands in its place is called: twice a layer's output is the output of twice its
    weights.
    """
    replaced, doubled = nnx.clone(small), nnx.clone(small)
    setattr(replaced.blk[0], name, Doubled(getattr(replaced.blk[0], name)))
    kernel = getattr(doubled.blk[0], name).kernel
    getattr(doubled.blk[0], name).kernel = nnx.Param(
        2 * (dequantize(kernel) if isinstance(kernel, QParam) else kernel.get_value())
    )
    expected = logits(doubled, TOKENS)
    np.testing.assert_allclose(logits(replaced, TOKENS), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(expected - logits(small, TOKENS)).max() > 1e-3


@pytest.mark.parametrize("name", ["qwen2.Q5_1", "mixtral.Q4_K_M", "llama-rope3.Q5_1"])
def test_paths_are_the_file_s_names(load, reference, name):
    """Each tensor once, under its name, in its shape: kernels (in, out), embeddings (V, D).

    The rope factors are configuration.
    """
    gguf = open_gguf(reference / "models" / f"{name}.gguf")
    state = nnx.to_pure_dict(nnx.state(load(name)))
    shapes = {}

    def walk(node, path):
        if isinstance(node, dict):
            for key, child in node.items():
                walk(child, (*path, key))
        else:
            shapes[tensor_name(path)] = (
                node.shape[:-2] + node.shape[:-3:-1] if path[-1] == "kernel" else node.shape
            )
            assert isinstance(node, QTensor | jax.Array)

    walk(state, ())
    assert shapes == {
        name: tensor.shape for name, tensor in gguf.tensors.items() if name != "rope_freqs.weight"
    }


def test_tensor_names():
    assert tensor_name(("blk", 3, "attn_q", "kernel")) == "blk.3.attn_q.weight"
    assert tensor_name(("blk", 0, "attn_k", "bias")) == "blk.0.attn_k.bias"
    assert tensor_name(("token_embd", "embedding")) == "token_embd.weight"
    assert tensor_name(("output_norm", "scale")) == "output_norm.weight"


def test_a_changed_weight_changes_the_model(small, logits):
    before = logits(small, TOKENS)
    small.output_norm.scale = nnx.Param(2 * small.output_norm.scale.get_value())
    np.testing.assert_allclose(logits(small, TOKENS), 2 * before, rtol=1e-5)
    small.blk[0].ffn_norm.scale[...] = jnp.zeros(32)
    assert not np.allclose(logits(small, TOKENS), 2 * before, rtol=1e-2)
