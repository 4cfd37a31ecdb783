"""Whole models with the products and attention in C++."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rocmforge_jax.generate import Engine, SamplingParams
from rocmforge_jax.gguf import open_gguf
from rocmforge_jax.models import kernel_report, load_decoder
from rocmforge_jax.quant import QParam

pytestmark = pytest.mark.core
#: Architectures, KV heads from one to all, types that C++ has and one that it has not, experts.
NAMES = (
    "llama-gqa.Q4_1",
    "llama-mqa.Q5_0",
    "llama-rope3.Q5_1",
    "qwen2.Q4_K_M",
    "qwen3.Q8_0",
    "glm4.Q5_1",
    "llama-gqa.IQ2_XS",
    "mixtral.Q4_K_M",
)


@pytest.fixture
def loaded(reference, in_cpp):
    return lambda name, **how: load_decoder(open_gguf(reference / "models" / f"{name}.gguf"), **how)


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_near_llama_cpp_s(name, loaded, logits, relative, index, reference):
    """A few layers of products that are off by 1e-4 each.

    With exact activations by 1e-5, as plain XLA's.
    """
    truth = np.load(reference / "models" / f"{name}.npy")
    tokens = np.array(index["ids"], np.int32)[None]
    assert relative(logits(loaded(name), tokens)[0, index["rows"]], truth) < 1e-3
    assert (
        relative(logits(loaded(name, activations="float"), tokens)[0, index["rows"]], truth) < 1e-5
    )


def test_weights_lie_as_c_plus_plus_reads_them(loaded):
    def layouts(decoder):
        return {
            variable.get_value().layout
            for _, variable in nnx.to_flat_state(nnx.state(decoder, QParam))
        }

    assert layouts(loaded("qwen2.Q4_K_M")) == {"groups"}
    assert layouts(loaded("qwen2.Q4_K_M", activations="float")) == {"columns"}
    assert "columns" in layouts(loaded("llama-gqa.IQ2_XS"))


def test_the_bytes_of_the_file_come_back(loaded, reference):
    decoder, gguf = loaded("qwen2.Q4_K_M"), open_gguf(reference / "models" / "qwen2.Q4_K_M.gguf")
    for name, weight in (
        ("blk.0.attn_v.weight", decoder.blk[0].attn_v.kernel),
        ("token_embd.weight", decoder.token_embd.embedding),
    ):
        np.testing.assert_array_equal(weight.get_value().to_bytes(), gguf.tensors[name].data)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_step_copies_no_cache_and_holds_no_dense_weight(batch, loaded, flat, optimised):
    decoder = loaded("qwen2.Q5_1")
    leaves, merge = flat(decoder)
    step = jax.jit(
        lambda leaves, cache, tokens: merge(leaves)(tokens, cache, last_only=True), donate_argnums=1
    )
    cache = decoder.init_cache(batch, 640)
    compiled = step.lower(leaves, cache, jnp.zeros((batch, 1), jnp.int32)).compile(optimised)
    largest = max(
        4 * np.prod(variable.get_value().shape)
        for _, variable in nnx.to_flat_state(nnx.state(decoder, QParam))
    )
    assert compiled.memory_analysis().alias_size_in_bytes == cache.nbytes
    assert compiled.memory_analysis().temp_size_in_bytes < largest
    text, shapes = (
        compiled.as_text(),
        {leaf.shape for layer in cache.layers for leaf in (layer.keys, layer.values)},
    )
    copies = re.findall(r"f32\[([\d,]+)\]\S* (?:copy|transpose)\(", text)
    assert text.count("rocmforge_attend") and not shapes & {
        tuple(map(int, copy.split(","))) for copy in copies
    }


def test_text_goes_on_as_the_kept_cache_and_as_a_fresh_one_say(loaded):
    engine, ids = Engine(loaded("qwen2.Q5_1")), list(range(1, 40))

    def answer(ids):
        return sum(
            (
                step[0].ids
                for step in engine.generate([ids], SamplingParams(temperature=0.0), max_tokens=20)
            ),
            [],
        )

    first = answer(ids)
    again = answer(ids + first[:10])  # what the cache holds is not computed again
    engine.forget()
    assert again == answer(ids + first[:10]) and again[:10] == first[10:]


def test_the_gradient_of_a_whole_model(loaded):
    """In its float weights, through products and attention in C++: near plain XLA's.

    The backward pass is plain XLA's, on activations that are off by 1e-4 for each product before.
    """
    tokens = jnp.arange(12, dtype=jnp.int32)[None]

    def gradients(decoder):
        def loss(model):
            return jax.nn.logsumexp(model(tokens)[0], axis=-1).mean()

        return jax.tree.leaves(nnx.grad(loss)(decoder))

    found, exact = (
        gradients(loaded("qwen2.Q5_1", activations=mode)) for mode in ("int16", "float")
    )
    for one, other in zip(found, exact, strict=True):
        error = np.linalg.norm(one - other) / np.linalg.norm(other)
        # A product is off by 1e-4, and two layers add up to 1.4e-4 to 3.6e-4. Equal gradients would
        # mean that both models ran the same products.
        assert 0 < error < 1e-3


def test_the_report_lists_what_runs(loaded, monkeypatch, tmp_path):
    decoder = loaded("llama-gqa.IQ2_XS")
    report = kernel_report(decoder)
    products = {
        (entry.kind, entry.backend)
        for entry in report
        if entry.operation in ("matmul", "products") and " + " not in entry.kind
    }
    assert {("IQ2_XS", "xla"), ("Q4_K", "cpp")} <= products
    assert "IQ2_XS planes lie in columns" in str(report)
    assert {entry.backend for entry in report if entry.operation == "attention"} == {"cpp"}
    monkeypatch.setenv("ROCMFORGE_CPP_FOLDER", str(tmp_path))
    assert "rocmforge-jax build-native" in str(kernel_report(decoder))
