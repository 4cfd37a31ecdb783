"""All tensors are claimed and all keys accounted for, or the file is refused with the list."""

import functools
import re

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import rocmforge_jax
from rocmforge_jax import formats, quant
from rocmforge_jax.gguf import GGUFError, open_gguf, write_gguf
from rocmforge_jax.models import (
    ARCHITECTURES,
    Architecture,
    llama_like,
    load_decoder,
    param_count,
    read_config,
    register,
)

pytestmark = pytest.mark.core


def zeros(*shape, dtype=np.float32, kind="F32"):
    return kind, np.zeros(shape, dtype)


def test_all_tensors_that_do_not_fit_are_listed_at_once(small_file):
    wrong = {
        "blk.0.attn_q.weight": None,
        "output_norm.weight": None,
        "blk.0.ffn_up.weight": zeros(64, 33),
        "blk.0.attn_norm.weight": zeros(31),
        "blk.0.attn_q.bias": zeros(31),
        "blk.0.attn_q_norm.weight": zeros(8),
        "blk.1.attn_q.weight": zeros(32, 32),
    }
    with pytest.raises(GGUFError) as caught:
        load_decoder(small_file(tensors=wrong))
    message = str(caught.value)
    for words in (
        "small.gguf does not fit the architecture 'llama'",
        "blk.0.attn_q.weight [32, 32] is missing",
        "output_norm.weight [32] is missing",
        "blk.0.ffn_up.weight has shape [64, 33], expected [64, 32]",
        "blk.0.attn_norm.weight has shape [31], expected [32]",
        "blk.0.attn_q.bias has shape [31], expected [32]",
        "blk.0.attn_q_norm.weight is not part of the architecture",
        "blk.1.attn_q.weight is not part of the architecture",
    ):
        assert words in message
    assert message.count(";") == 6


def test_a_file_without_an_embedding_says_so(small_file):
    with pytest.raises(GGUFError, match="token_embd.weight"):
        load_decoder(small_file(tensors={"token_embd.weight": None}))


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (
            "blk.0.attn_q.weight",
            zeros(32, 32, dtype=np.int32, kind="I32"),
            r"attn_q.weight: a I32 tensor of shape \[32, 32\] is no weight",
        ),
        (
            "blk.0.attn_q.weight",
            zeros(32, 32, dtype=np.float64, kind="F64"),
            r"a F64 tensor of shape \[32, 32\] is no weight",
        ),
    ],
)
def test_tensors_of_a_type_that_is_no_weight(small_file, name, tensor, message):
    with pytest.raises(GGUFError, match=message):
        load_decoder(small_file(tensors={name: tensor}))


def test_unknown_keys_warn_by_name_and_strict_refuses_them(small_file):
    gguf = small_file(
        keys={"llama.new_trick": 1, "llama.attention.other": 2.5, "tokenizer.anything": 3}
    )
    with pytest.warns(UserWarning, match=r"small.gguf: .*llama.new_trick, llama.attention.other$"):
        load_decoder(gguf)
    with pytest.raises(GGUFError, match="llama.new_trick, llama.attention.other$"):
        load_decoder(gguf, strict=True)


def test_keys_that_change_nothing_are_listed_with_the_reason_and_load_in_silence(small_file):
    gguf = small_file(
        keys={"llama.attention.sliding_window": 16, "llama.rope.scaling.finetuned": True}
    )
    _, unused = read_config(gguf)
    assert unused.keys() == {"llama.attention.sliding_window", "llama.rope.scaling.finetuned"}
    assert "llama.cpp ignores it" in unused["llama.attention.sliding_window"]
    load_decoder(gguf, strict=True)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("lama", "small.gguf: .*'lama' is not in this version's table of .*did you mean llama?"),
        ("LLaMA", "'LLaMA' is not in this version's table.* llama?"),
        (
            "kimi-k2",
            r"'kimi-k2' is not in this version's table of .* \(docs/architectures.md",
        ),
        # Other models of a family are no misspellings.
        *(
            (name, f"'{name}' is not in .*docs/architectures.md")
            for name in ("qwe", "qwen9", "gemma2x")
        ),
        ("", "it has no general.architecture: it holds no model"),
        ("x" * 5000, r"'x{79}\.\.\. \(5,002 characters\) is not in this version's table"),
        (None, "no general.architecture: it holds no model"),
        (7, "general.architecture must be text, got 7"),
    ],
)
def test_unknown_architectures(small_file, architecture, message):
    with pytest.raises(GGUFError, match=message):
        load_decoder(small_file(keys={"general.architecture": architecture}))


def test_an_architecture_registered_by_the_user(small_file, logits, monkeypatch):
    """The same tensors under another name load as what was registered: here llama's settings, then
    with the other pairs.
    """
    monkeypatch.setattr("rocmforge_jax.models.architectures.ARCHITECTURES", ARCHITECTURES.copy())
    renamed = {"general.architecture": "mymodel", "mymodel.unused": 1}
    renamed |= {
        f"mymodel.{key}": value
        for key, value in small_file().metadata.items()
        if key.startswith("llama.")
    }
    renamed = {key.replace("mymodel.llama.", "mymodel."): value for key, value in renamed.items()}
    tokens = np.arange(40, dtype=np.int32)[None]
    expected = logits(load_decoder(small_file()), tokens)
    results = []
    for interleaved in (True, False):
        read = functools.partial(llama_like, interleaved=interleaved)
        register(Architecture("mymodel", read, ignored_keys={"unused": "a test"}))
        results.append(logits(load_decoder(small_file(keys=renamed, name="renamed.gguf")), tokens))
    np.testing.assert_array_equal(results[0], expected)
    assert not np.allclose(results[1], expected, rtol=1e-3)


@pytest.mark.parametrize("rotates", [True, False])
def test_granite_says_whether_positions_rotate(small_file, logits, rotates):
    """Without rotation the last token of one layer sees a set of tokens, whatever their order."""
    keys = {
        key.replace("llama.", "granite."): value for key, value in small_file().metadata.items()
    }
    keys |= {"general.architecture": "granite", "granite.logit_scale": 8.0}
    keys |= {"granite.rope.scaling.finetuned": rotates}
    decoder = load_decoder(small_file(keys=keys), strict=True)
    tokens = np.arange(40, dtype=np.int32)[None]
    reordered = np.concatenate([tokens[:, -2::-1], tokens[:, -1:]], axis=1)
    expected, got = (logits(decoder, order)[:, -1] for order in (tokens, reordered))
    assert np.allclose(got, expected, rtol=1e-4, atol=1e-6) != rotates


def test_weights_are_the_file_s(small_file):
    """Quantised matrices stay packed, other weights keep their dtype.

    Kernels are (in, out), embeddings (vocabulary, width).
    """
    random = np.random.default_rng(1)
    values = random.normal(size=(64, 32)).astype(np.float32)
    packed = formats.quantize(values, "Q5_1")
    embedded = formats.quantize(random.normal(size=(48, 32)).astype(np.float32), "Q8_0")
    tensors = {
        "blk.0.ffn_up.weight": ("Q5_1", packed),
        "blk.0.ffn_gate.weight": ("F16", values.astype(np.float16)),
        "blk.0.ffn_down.weight": ("BF16", values.reshape(32, 64).astype(ml_dtypes.bfloat16)),
        "token_embd.weight": ("Q8_0", embedded),
    }
    decoder = load_decoder(small_file(tensors=tensors))
    block = decoder.blk[0]
    assert (
        isinstance(block.ffn_up.kernel, quant.QParam)
        and block.ffn_up.kernel.get_value().type_name == "Q5_1"
    )
    np.testing.assert_array_equal(
        quant.dequantize(block.ffn_up.kernel), formats.dequantize(packed, "Q5_1").T
    )
    np.testing.assert_array_equal(
        quant.dequantize(decoder.token_embd.embedding), formats.dequantize(embedded, "Q8_0")
    )
    for name, dtype, expected in (
        ("ffn_gate", jnp.float16, values.T),
        ("ffn_down", jnp.bfloat16, values.reshape(32, 64).T),
    ):
        kernel = getattr(block, name).kernel.get_value()
        assert kernel.dtype == dtype
        np.testing.assert_array_equal(np.asarray(kernel), expected.astype(kernel.dtype))


def test_a_head_of_its_own_and_a_tied_one(small_file, logits):
    # As small_file writes it.
    embedding = np.random.default_rng(0).normal(0, 0.2, (48, 32)).astype(np.float32)
    tokens = np.arange(8, dtype=np.int32)[None]
    tied, own, negative = (
        load_decoder(
            small_file(tensors={"output.weight": head and ("F32", head[0])}, name=f"{i}.gguf")
        )
        for i, head in enumerate((None, [embedding], [-embedding]))
    )
    assert tied.output is None and tied.config.tied and not own.config.tied
    np.testing.assert_allclose(logits(own, tokens), logits(tied, tokens), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(logits(negative, tokens), -logits(own, tokens))
    assert param_count(own) - param_count(tied) == 48 * 32


def test_progress_counts_the_bytes_of_all_tensors(small_file):
    gguf, calls = small_file(), []
    load_decoder(gguf, progress=lambda *call: calls.append(call))
    total = sum(tensor.nbytes for tensor in gguf.tensors.values())
    assert len(calls) == len(gguf.tensors) and calls[-1] == (total, total)
    assert all(first[0] < second[0] for first, second in zip(calls, calls[1:])) and {
        call[1] for call in calls
    } == {total}


def test_layouts_give_the_same_logits(reference, logits, relative, index):
    """The planes of GPUs and of CPUs are two ways to hold one matrix."""
    gguf, tokens = (
        open_gguf(reference / "models" / "qwen2.Q5_1.gguf"),
        np.array(index["ids"][:32], np.int32)[None],
    )
    columns, rows = (
        logits(load_decoder(gguf, dtype=jnp.float32, layout=layout), tokens)
        for layout in ("columns", "rows")
    )
    assert relative(rows, columns) < 1e-5


def test_the_long_context_factors_matter(reference, tmp_path, load, logits, relative, index):
    """rope_freqs.weight: a loader that drops it in silence computes another model."""
    gguf = open_gguf(reference / "models" / "llama-rope3.Q5_1.gguf")
    tensors = {
        name: (tensor.format, tensor.data)
        for name, tensor in gguf.tensors.items()
        if name != "rope_freqs.weight"
    }
    write_gguf(tmp_path / "without.gguf", dict(gguf.metadata), tensors)
    tokens = np.array(index["ids"], np.int32)[None]
    whole, without = (
        logits(decoder, tokens)
        for decoder in (
            load("llama-rope3.Q5_1"),
            load_decoder(open_gguf(tmp_path / "without.gguf")),
        )
    )
    assert relative(without[:, 512:], whole[:, 512:]) > 1e-2


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        (zeros(5), r"width 8 takes 4 factors, got 5"),
        (zeros(4), r"rope factors must be positive, got \(0.0"),
        (
            ("F32", np.array([1, np.nan, 1, 1], np.float32)),
            "rope factors must be positive",
        ),
        (zeros(4, dtype=np.float16, kind="F16"), r"rope_freqs.weight must be an F32 vector"),
        (zeros(2, 2), r"rope_freqs.weight must be an F32 vector"),
    ],
)
def test_long_context_factors_that_are_wrong(small_file, factors, message):
    with pytest.raises(GGUFError, match=message):
        load_decoder(small_file(tensors={"rope_freqs.weight": factors}))


def test_messages_name_the_file(small_file):
    gguf = small_file(keys={"llama.attention.head_count_kv": 3})
    with pytest.raises(GGUFError, match=re.escape(str(gguf.path))):
        load_decoder(gguf)


def with_predictor(small_file, **keys):
    """A file of one layer whose block_count counts a block for multi-token prediction too."""
    more = {
        "blk.1.nextn.eh_proj.weight": zeros(32, 64),
        "blk.1.attn_norm.weight": zeros(32),
        "blk.1.nextn.enorm.weight": zeros(32),
    }
    counts = {"llama.block_count": 2, "llama.nextn_predict_layers": 1}
    return small_file(keys=counts | keys, tensors=more, name="predictor.gguf")


def test_blocks_for_multi_token_prediction_are_skipped_and_said(small_file, logits):
    tokens = np.arange(20, dtype=np.int32)[None]
    expected = logits(load_decoder(small_file()), tokens)
    with pytest.warns(UserWarning, match="the 3 tensors of 1 blocks for multi-token prediction"):
        decoder = load_decoder(with_predictor(small_file))
    assert len(decoder.blk) == len(decoder.config.layers) == 1
    np.testing.assert_array_equal(logits(decoder, tokens), expected)


@pytest.mark.parametrize("count", [2, 3])
def test_at_least_one_block_is_a_layer(small_file, count):
    with pytest.raises(GGUFError, match=f"nextn_predict_layers .* from 0 to 1.* has {count}"):
        load_decoder(with_predictor(small_file, **{"llama.nextn_predict_layers": count}))


def test_output_scales_multiply_products_and_calibrations_are_ignored(small_file, logits):
    """As NVFP4 files have them: one factor beside a weight."""
    tokens = np.arange(20, dtype=np.int32)[None]
    weights = {name: np.asarray(t.data.view("<f4")) for name, t in small_file().tensors.items()}
    scaled = {
        f"blk.0.{name}.scale": ("F32", np.array([factor], np.float32))
        for name, factor in (("attn_q", 2.0), ("attn_output", 0.5), ("ffn_up", 4.0))
    }
    calibrations = {"blk.0.attn_q.input_scale": ("F32", np.ones(1, np.float32))}
    divided = {
        name.replace(".scale", ".weight"): (
            "F32",
            weights[name.replace(".scale", ".weight")] / factor[0],
        )
        for name, (_, factor) in scaled.items()
    }
    expected = logits(load_decoder(small_file()), tokens)
    decoder = load_decoder(small_file(tensors=scaled | calibrations | divided, name="scaled.gguf"))
    np.testing.assert_allclose(logits(decoder, tokens), expected, rtol=1e-5, atol=1e-6)


def test_biases_follow_the_file(small_file, logits):
    """llama.cpp takes a bias wherever a file has one."""
    biases = {
        f"blk.0.{name}.bias": ("F32", np.full(size, 0.1, np.float32))
        for name, size in (("attn_q", 32), ("attn_output", 32), ("ffn_down", 32), ("ffn_gate", 64))
    }
    decoder = load_decoder(small_file(tensors=biases, name="biased.gguf"))
    assert decoder.blk[0].attn_k.bias is None
    np.testing.assert_array_equal(decoder.blk[0].ffn_gate.bias.get_value(), np.float32(0.1))
    tokens = np.arange(20, dtype=np.int32)[None]
    assert not np.allclose(logits(decoder, tokens), logits(load_decoder(small_file()), tokens))


def test_keys_with_neutral_values_are_silent_and_others_warn(small_file):
    neutral = {
        "llama.use_parallel_residual": False,
        "llama.expert_group_count": 1,
        "llama.logit_scale": np.float32(1.0),
        "llama.final_logit_softcapping": np.float32(0.0),
    }
    gguf = small_file(keys=neutral)
    load_decoder(gguf, strict=True)
    assert "1 changes nothing" in read_config(gguf)[1]["llama.expert_group_count"]
    for key, value in {
        "llama.use_parallel_residual": True,
        "llama.logit_scale": np.float32(2.0),
    }.items():
        with pytest.raises(GGUFError, match=f"not known here: {key}"):
            load_decoder(small_file(keys={key: value}), strict=True)


def test_arrays_of_keys_have_a_value_for_each_layer(small_file):
    """Two layers that differ in their heads and in their hidden units."""
    second = {
        f"blk.1.{name.removeprefix('blk.0.')}": tensor
        for name, tensor in {
            "blk.0.attn_norm.weight": zeros(32),
            "blk.0.attn_q.weight": zeros(16, 32),
            "blk.0.attn_k.weight": zeros(8, 32),
            "blk.0.attn_v.weight": zeros(8, 32),
            "blk.0.attn_output.weight": zeros(32, 16),
            "blk.0.ffn_norm.weight": zeros(32),
            "blk.0.ffn_gate.weight": zeros(40, 32),
            "blk.0.ffn_up.weight": zeros(40, 32),
            "blk.0.ffn_down.weight": zeros(32, 40),
        }.items()
    }
    keys = {
        "llama.block_count": 2,
        "llama.attention.head_count": [4, 2],
        "llama.attention.head_count_kv": [2, 1],
        "llama.feed_forward_length": [64, 40],
        "llama.attention.key_length": 8,
    }
    config = load_decoder(small_file(keys=keys, tensors=second)).config
    assert [layer.mixer.heads for layer in config.layers] == [4, 2]
    assert [layer.mixer.kv_heads for layer in config.layers] == [2, 1]
    assert [layer.feed_forward.hidden for layer in config.layers] == [64, 40]


def test_tensors_are_checked_before_the_memory(small_file):
    """A size that contradicts the tensors is said to do so, not to need too much memory."""
    gguf = small_file(keys={"llama.feed_forward_length": 2**31 - 1})
    with pytest.raises(
        GGUFError, match="blk.0.ffn_up.weight has shape .* expected .2147483647, 32"
    ):
        rocmforge_jax.load(gguf.path)


@pytest.mark.parametrize("length", [0, 1, -5, 2**31, 1.5, "7", True])
def test_context_lengths_are_checked_first(length):
    with pytest.raises(ValueError, match="context_length must be"):
        rocmforge_jax.load("no such file", context_length=length)


def test_the_original_context_is_the_trained_one(small_file):
    """Not the one that the model is opened with, as in llama.cpp."""
    gguf = small_file(keys={"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0})
    for opened in (None, 64, 500):
        rope = read_config(gguf, opened)[0].layers[0].mixer.rope
        assert rope.yarn.original_context == 128


def test_a_family_that_may_have_biases_loads_without_them(small_file):
    """As GLM-4-0414 does; llama.cpp requires none of them."""
    for name in ("qwen2", "glm4"):
        keys = {
            key.replace("llama.", f"{name}."): value
            for key, value in small_file().metadata.items()
            if key.startswith("llama.")
        }
        norms = {
            f"blk.0.{norm}.weight": zeros(32)
            for norm in ("post_attention_norm", "post_ffw_norm")
            if name == "glm4"
        }
        file = small_file(keys=keys | {"general.architecture": name}, tensors=norms)
        assert load_decoder(file).config.layers[0].biases == frozenset()
