"""Adapters on the experts of a mixture: what they compute, training, merging, files."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rocmforge_jax as rf
from rocmforge_jax import formats
from rocmforge_jax.adapters.wrap import adapters
from rocmforge_jax.gguf import write_gguf
from rocmforge_jax.models import Decoder, DecoderConfig, Gated, LatentAttention, Mixture
from rocmforge_jax.nn import Experts, LoRAExperts, RopeConfig, Routing

EXPERTS = 5
TOKENS = jnp.array(np.random.default_rng(1).integers(0, 45, (2, 7)), jnp.int32)
STACKS = {f"blk.{i}.ffn_{name}_exps.weight" for i in range(2) for name in ("gate", "up", "down")}


@pytest.fixture
def mixture(decoder):
    """mixture(type_name): two layers with five experts each, whose weights have a type."""

    def make(type_name=None, fused=False):
        model = decoder(None)
        feed = Mixture(hidden=32, experts=EXPERTS, routing=Routing(2, "softmax", True), fused=fused)
        layers = tuple(
            dataclasses.replace(layer, feed_forward=feed) for layer in model.config.layers[:2]
        )
        made = Decoder(dataclasses.replace(model.config, layers=layers), rngs=nnx.Rngs(5))
        for _, module in nnx.iter_modules(made):
            if type(module) is Experts and type_name:
                kernel = np.asarray(module.kernel.get_value()).swapaxes(1, 2)
                packed = formats.quantize(np.ascontiguousarray(kernel), type_name)
                module.kernel = rf.QParam(rf.QTensor.from_bytes(packed, type_name, transposed=True))
        return made

    return make


def logits(model, tokens=TOKENS):
    return np.asarray(jax.jit(lambda model: model(tokens)[0])(model))


def summed(model):
    """The model with sums in place of adapters, which NumPy computes in float64."""
    plain = rf.remove_lora(model)
    for name, layer in adapters(model).items():
        _, i, of_layer, _ = name.split(".")
        base = layer.base_module.kernel
        dense = rf.dequantize(base) if isinstance(base, rf.QParam) else base.get_value()
        a, b = (np.asarray(m.get_value(), np.float64) for m in (layer.lora_a, layer.lora_b))
        kernel = np.asarray(dense, np.float64)
        kernel = kernel + layer.alpha / layer.rank * a @ b
        getattr(plain.blk[int(i)], of_layer).kernel = nnx.Param(jnp.asarray(kernel, jnp.float32))
    return plain


@pytest.mark.parametrize("tokens", [TOKENS, TOKENS[:1, :2]], ids=["by expert", "by pair"])
@pytest.mark.parametrize("fused", [False, True])
def test_each_expert_has_an_adapter(mixture, shaken, fused, tokens):
    """Few tokens are computed pair by pair, many expert by expert."""
    plain = mixture(fused=fused)
    model = rf.lora(plain, 3, ["*_exps", "*.attn_q"], alpha=7)
    stacks = {name for name, one in adapters(model).items() if type(one) is LoRAExperts}
    assert (
        stacks == ({name for name in adapters(model) if "ffn" in name} if fused else STACKS)
        and len(adapters(model)) == len(stacks) + 2
    )
    down = model.blk[1].ffn_down_exps
    assert (down.lora_a.shape, down.lora_b.shape) == ((EXPERTS, 32, 3), (EXPERTS, 3, 64))
    np.testing.assert_array_equal(logits(model, tokens), logits(plain, tokens))
    # Without the adapters, logits differ by 0.3. What is left is the rounding of float32.
    expected = logits(summed(shaken(model)), tokens)
    np.testing.assert_allclose(logits(model, tokens), expected, rtol=0, atol=2e-5)
    assert np.abs(expected - logits(plain, tokens)).max() > 1e-2


@pytest.mark.parametrize("library", ["in C++", "in plain XLA"])
def test_packed_experts(mixture, shaken, library, request):
    """Products in C++ round activations to 15 bits of a group's largest."""
    if library == "in C++":
        request.getfixturevalue("in_cpp")
    model = shaken(rf.lora(mixture("Q5_1"), 3, "*_exps"))
    assert type(model.blk[0].ffn_up_exps.base_module.kernel) is rf.QParam
    assert np.abs(logits(model) - logits(rf.remove_lora(model))).max() > 0.1
    np.testing.assert_allclose(logits(model), logits(summed(model)), rtol=0, atol=2e-3)


def test_only_adapters_are_trained(mixture, shaken):
    """The gradient of a matrix is a difference quotient of the loss."""
    model = shaken(rf.lora(mixture("Q8_0"), 2, "blk.1.*_exps"))

    def loss(model):
        return jnp.square(model(TOKENS)[0]).mean()

    found = nnx.jit(nnx.grad(loss, argnums=nnx.DiffState(0, nnx.LoRAParam)))(model)
    leaves = jax.tree.leaves(found)
    assert len(leaves) == 6 and all(np.abs(leaf).max() > 0 for leaf in leaves)
    matrix = model.blk[1].ffn_up_exps.lora_b
    gradient = np.asarray(found.blk[1].ffn_up_exps.lora_b.get_value())
    value, step = matrix.get_value(), 1e-2 * gradient / np.linalg.norm(gradient)
    ends = []
    for sign in (1, -1):
        matrix.set_value(value + sign * step)
        ends.append(float(jax.jit(loss)(model)))
    slope = (ends[0] - ends[1]) / (2 * 1e-2)
    assert abs(slope / np.linalg.norm(gradient) - 1) < 1e-2


def test_merged_experts(mixture, shaken):
    model = shaken(rf.lora(mixture("Q8_0"), 3, "*_exps"))
    merged = rf.merge_lora(model)
    assert not adapters(merged)
    for name in adapters(model):
        _, i, of_layer, _ = name.split(".")
        found, expected = (getattr(one.blk[int(i)], of_layer) for one in (merged, summed(model)))
        assert type(found) is Experts
        np.testing.assert_allclose(
            # Sums in float32 and in float64 of weights below 1.
            found.kernel.get_value(),
            expected.kernel.get_value(),
            rtol=0,
            atol=1e-6,
        )
    packed = rf.merge_lora(model, "same").blk[0].ffn_gate_exps.kernel
    assert packed.get_value().type_name == "Q8_0"
    dense = merged.blk[0].ffn_gate_exps.kernel.get_value()
    np.testing.assert_allclose(rf.dequantize(packed), dense, rtol=0, atol=0.01)


def test_an_output_scale_of_experts_is_kept(mixture, shaken):
    model = mixture()
    scale = jnp.asarray(np.random.default_rng(3).uniform(0.3, 2, EXPERTS), jnp.float32)
    for layer in model.blk:
        layer.ffn_down_exps.output_scale = nnx.Param(scale)
    model = shaken(rf.lora(model, 2, "*.ffn_down_exps"))
    assert np.abs(logits(model) - logits(rf.remove_lora(model))).max() > 0.1
    np.testing.assert_allclose(logits(rf.merge_lora(model)), logits(model), rtol=0, atol=2e-5)


def test_llama_cpp_s_file_holds_stacks(mixture, shaken, tmp_path):
    """ggml's [in, rank, experts] and [rank, out, experts], which NumPy has in reverse."""
    plain = mixture("Q8_0")
    model = shaken(rf.lora(plain, 3, ["*_exps", "*.attn_q"], alpha=7))
    rf.save_lora(model, tmp_path / "a.gguf")
    tensors = rf.open_gguf(tmp_path / "a.gguf").tensors
    a, b = (tensors[f"blk.0.ffn_down_exps.weight.lora_{one}"] for one in "ab")
    assert (a.shape, b.shape) == ((EXPERTS, 3, 32), (EXPERTS, 64, 3))
    expected = np.asarray(model.blk[0].ffn_down_exps.lora_b.get_value()).swapaxes(1, 2)
    np.testing.assert_array_equal(b.data.view(np.float32).reshape(b.shape), expected)
    loaded = rf.load_lora(plain, tmp_path / "a.gguf")
    assert loaded.blk[0].ffn_down_exps.scale == 7 / 3
    np.testing.assert_array_equal(logits(loaded), logits(model))
    with pytest.raises(ValueError, match=r"blk\.0\.ffn_down_exps\.weight.*GGUF"):
        rf.save_lora(model, tmp_path / "peft")


@pytest.mark.parametrize(
    "a, b, parts",
    [
        ((2, 64), (32, 2), ["[2, 64]", "[32, 2]"]),
        ((4, 2, 64), (4, 32, 2), ["[4, 2, 64]", "[5, 2, 64]", "[4, 32, 2]", "[5, 32, 2]"]),
        ((5, 2, 64), (5, 32, 3), ["[5, 32, 3]", "[5, 32, 2]"]),
        ((64,), (5, 32, 2), ["[64]"]),
    ],
)
def test_matrices_that_do_not_fit_experts(mixture, tmp_path, a, b, parts):
    keys = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
    name = "blk.0.ffn_up_exps.weight"
    ones = {
        f"{name}.lora_{end}": ("F32", np.ones(shape, np.float32))
        for end, shape in (("a", a), ("b", b))
    }
    write_gguf(tmp_path / "a.gguf", keys | {"adapter.lora.alpha": 6.0}, ones)
    with pytest.raises(ValueError) as caught:
        rf.load_lora(mixture(), tmp_path / "a.gguf")
    assert all(part in str(caught.value) for part in [name, *parts])


def test_a_router_and_all_linear_layers(mixture, shaken):
    """True means linear layers; only a pattern names experts."""
    model = mixture()
    found = adapters(rf.lora(model, 2, True))
    assert "blk.0.ffn_gate_inp.weight" in found and len(found) == 2 * 5
    adapted = rf.lora(model, 2, "blk.*.ffn_gate_inp")
    np.testing.assert_array_equal(logits(adapted), logits(model))
    assert np.abs(logits(shaken(adapted)) - logits(model)).max() > 1e-4


def test_a_second_adapter_is_refused(mixture):
    model = rf.lora(mixture(), 2, "blk.0.ffn_up_exps")
    with pytest.raises(ValueError, match=r"blk\.0\.ffn_up_exps\.weight.*merge_lora"):
        rf.lora(model, 2, "blk.*.ffn_*_exps")


def test_stacks_of_no_mixture_are_refused(tmp_path):
    """Those of the heads' latents, one by one in `nn.through_each`."""
    mixer = LatentAttention(3, 16, 8, 8, RopeConfig(4), 0.3)
    sizes = dict(width=32, vocabulary=45, context_length=64, norm_epsilon=1e-5)
    config = DecoderConfig.uniform(1, mixer, Gated(48), architecture="deepseek2", **sizes)
    model = Decoder(config, rngs=nnx.Rngs(2))
    with pytest.raises(ValueError, match=r"blk\.0\.attn_k_b\.weight.*no mixture"):
        rf.lora(model, 2, "blk.*.attn_*")
    assert "blk.0.attn_output.weight" in adapters(rf.lora(model, 2, True))
