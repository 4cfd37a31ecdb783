"""Exported programs compute what the model computes, and know nothing of this package."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

import rocmforge_jax as rf
from rocmforge_jax.models import (
    Attention,
    Decoder,
    DecoderConfig,
    DeltaRule,
    Gated,
    Mixture,
    ShortConvolution,
)
from rocmforge_jax.nn import Linear, RopeConfig, Routing

ATTENTION = Attention(4, 2, 16, RopeConfig(16))
KINDS = {
    "dense": (ATTENTION, Gated(96)),
    "window": (dataclasses.replace(ATTENTION, window=5), Gated(96)),
    "convolution": (ShortConvolution(64, 3), Gated(96)),
    "delta rule": (DeltaRule(2, 4, key_width=16, value_width=16, taps=4), Gated(96)),
    "mixture": (ATTENTION, Mixture(4, Routing(2, "softmax", True), 32)),
}


def decoder(kind):
    mixer, feed_forward = KINDS[kind]
    sizes = dict(width=64, vocabulary=45, context_length=64, norm_epsilon=1e-5)
    config = DecoderConfig.uniform(2, mixer, feed_forward, architecture=kind, **sizes)
    made = Decoder(config, rngs=nnx.Rngs(3), activations="float")
    for _, module in nnx.iter_modules(made):
        if type(module) is Linear:
            rows = np.ascontiguousarray(np.asarray(module.kernel.get_value()).T)
            packed = rf.formats.quantize(rows, "Q5_0")
            module.kernel = rf.QParam(rf.QTensor.from_bytes(packed, "Q5_0", transposed=True))
    return made


@jax.jit
def computed(model, tokens, lengths, cache):
    return model(tokens, cache, lengths_B=lengths, last_only=True)


def compared(program, model, tokens, lengths, slots):
    """Both programs' logits beside the model's, for prompts and a token after each."""
    weights = list(program.weights.values())
    held, cache = program.empty_cache(len(tokens), slots), model.init_cache(len(tokens), slots)
    got, held = jax.jit(program.prefill.call)(weights, tokens, lengths, held)
    wanted, cache = computed(model, tokens, lengths, cache)
    new, one = jnp.array([[7], [8], [9]], jnp.int32)[: len(tokens)], jnp.ones_like(lengths)
    next_got, _ = jax.jit(program.decode.call)(weights, new, one, held)
    next_wanted, _ = computed(model, new, one, cache)
    return [(got, wanted), (next_got, next_wanted)]


TOKENS = jnp.array(np.random.default_rng(1).integers(0, 45, (3, 13)), jnp.int32)
LENGTHS = jnp.array([13, 4, 9], jnp.int32)


FIXED = {"delta rule": dict(length=13)}  # its chunks need a number of tokens


@pytest.mark.parametrize("kind", KINDS)
def test_programs_take_any_sizes(kind):
    model = decoder(kind)
    program = rf.export_program(model, platforms=("cpu",), **FIXED.get(kind, {}))
    for batch, slots in ((3, 17), (1, 130)) if kind == "dense" else ((2, 19),):
        for got, wanted in compared(program, model, TOKENS[:batch], LENGTHS[:batch], slots):
            np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)


def test_a_model_with_kernels_is_exported_without(in_cpp):
    model = decoder("dense")
    program = rf.export_program(model)
    assert "@rocmforge" not in program.prefill.mlir_module()
    for got, wanted in compared(program, model, TOKENS, LENGTHS, 17):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)


def test_programs_of_fixed_sizes():
    model = decoder("dense")
    program = rf.export_program(model, batch=3, length=13)
    assert program.prefill.platforms == ("cpu", "cuda", "rocm")
    for got, wanted in compared(program, model, TOKENS, LENGTHS, 17):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"2,13|\(2, 13\)|batch|3"):
        compared(program, model, TOKENS[:2], LENGTHS[:2], 17)


def test_saved_programs_hold_no_kernels_and_all_weights(tmp_path):
    model = rf.lora(decoder("dense"), 2, dtype=jnp.bfloat16)
    program = rf.export_program(model, tmp_path / "new" / "folder")
    files = {file.name for file in (tmp_path / "new" / "folder").iterdir()}
    assert files == {"prefill.bin", "decode.bin", "weights.npz", "program.json"}
    for name in ("prefill", "decode"):
        blob = (tmp_path / "new" / "folder" / f"{name}.bin").read_bytes()
        assert str(export.deserialize(blob).in_avals) == str(getattr(program, name).in_avals)
        assert "@rocmforge" not in getattr(program, name).mlir_module()
    with np.load(tmp_path / "new" / "folder" / "weights.npz") as saved:
        for (name, array), stored in zip(program.weights.items(), saved.values()):
            np.testing.assert_array_equal(stored.view(array.dtype), array)
            assert name in saved.files
    assert "blk.0.attn_q.lora_a" in program.weights
    about = json.loads((tmp_path / "new" / "folder" / "program.json").read_text())
    assert about["context_length"] == 64
    assert about["cache"][0] == {"shape": ["b", 2, 16, "s"], "dtype": "float32"}
    assert "cuda" in repr(program) and f"{len(program.weights)} weights" in repr(program)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(batch=0), "batch.*0"),
        (dict(length=1), "length.*2.*1"),
        (dict(platforms=("abacus",)), "abacus"),
        (dict(platforms=()), "platforms"),
    ],
)
def test_what_is_wrong_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        rf.export_program(decoder("dense"), **options)


def test_other_models_are_refused():
    with pytest.raises(TypeError, match="Decoder.*str"):
        rf.export_program("demo")
    with pytest.raises(ValueError, match="delta rule.*length"):
        rf.export_program(decoder("delta rule"))


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    program = rf.export_program(decoder("dense"), platforms=("cpu",))

    def serialize(*args, **kwargs):
        raise ImportError("Please install 'flatbuffers'")

    monkeypatch.setattr(type(program.prefill), "serialize", serialize)
    with pytest.raises(ImportError, match=r"rocmforge-jax\[export\]"):
        program.save(tmp_path)
