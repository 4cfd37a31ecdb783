"""A file that cannot be loaded is refused with the likely cause, and with all that is wrong."""

import numpy as np
import pytest

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.models import file_problems, load_decoder

pytestmark = pytest.mark.core


def zeros(*shape):
    return "F32", np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"general.type": "adapter", "adapter.type": "lora"}, "it is an adapter .LoRA."),
        ({"adapter.type": "lora"}, "it is an adapter .LoRA."),
        ({"general.type": "mmproj"}, "it is a projector .mmproj."),
        ({"general.architecture": "clip"}, "it is a projector .mmproj."),
        ({"general.type": "imatrix"}, "it is an importance matrix"),
        (
            {"general.architecture": None, "imatrix.chunk_count": 7},
            "it is an importance matrix",
        ),
        ({"general.architecture": "controlvector"}, "it is a control vector"),
        ({"general.architecture": None}, "it has no general.architecture: it holds no model"),
    ],
    ids=str,
)
def test_files_that_hold_no_model(small_file, keys, message):
    with pytest.raises(GGUFError, match=f"small.gguf: {message}"):
        load_decoder(small_file(keys=keys))


def test_files_without_tensors(small_file):
    empty = dict.fromkeys(small_file().tensors)
    with pytest.raises(GGUFError, match="it has no tensors: it holds no model"):
        load_decoder(small_file(tensors=empty))
    vocabulary = {"tokenizer.ggml.model": "llama"}
    with pytest.raises(GGUFError, match="it holds a vocabulary and no weights: .*load_tokenizer"):
        load_decoder(small_file(keys=vocabulary, tensors=empty))


def test_a_type_of_another_kind_is_no_reason(small_file):
    load_decoder(small_file(keys={"general.type": "model"}))
    load_decoder(small_file(keys={"general.type": 7}))


@pytest.mark.parametrize(
    ("keys", "tensors", "message"),
    [
        (
            {"llama.expert_count": 2, "llama.expert_used_count": 1},
            {
                f"blk.0.ffn_{part}.{i}.weight": zeros(64, 32)
                for part in ("gate", "up")
                for i in "01"
            },
            r"\(its experts are stored one by one",
        ),
        ({}, {"model.layers.0.mlp.up_proj.weight": zeros(64, 32)}, "the names of PyTorch"),
        ({}, {"blk.0.attn_q.weight.lora_a": zeros(4, 32)}, "tensors of an adapter"),
        ({"llama.block_count": 3}, {}, "block_count is 3, the file has 1 blocks"),
        ({}, {"blk.4.attn_norm.weight": zeros(32)}, "block_count is 1, the file has 5 blocks"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
def test_likely_causes_of_tensors_that_do_not_fit(small_file, keys, tensors, message):
    with pytest.raises(GGUFError, match=f"does not fit the architecture 'llama' .*{message}"):
        load_decoder(small_file(keys=keys, tensors=tensors))


def test_a_file_that_fits_has_no_problems(small_file):
    assert file_problems(small_file()) == []


def test_thousands_of_problems_are_counted(small_file):
    """A message names the first ones; `file_problems` has all of them."""
    more = {f"blk.{i}.new_{'y' * 40}.weight": zeros(1) for i in range(3000)}
    gguf = small_file(tensors=more | {"output_norm.weight": None})
    with pytest.raises(GGUFError, match="output_norm.weight .* and 2,981 more$") as caught:
        load_decoder(gguf)
    assert len(str(caught.value)) < 4000
    cause, *problems = file_problems(gguf)
    assert "block_count is 1, the file has 3000 blocks" in cause and len(problems) == 3001


def test_thousands_of_unknown_keys_are_counted(small_file):
    gguf = small_file(keys={f"llama.new_{i}": 1 for i in range(3000)} | {"llama." + "z" * 5000: 1})
    with pytest.raises(GGUFError, match="not known here: .* and 2,981 more$") as caught:
        load_decoder(gguf, strict=True)
    assert len(str(caught.value)) < 1000
    with pytest.raises(GGUFError, match=r"not known here: llama.z+\.\.\. \(5,006 characters\)$"):
        load_decoder(small_file(keys={"llama." + "z" * 5000: 1}), strict=True)


def test_missing_keys_are_problems_too(small_file):
    (problem,) = file_problems(small_file(keys={"llama.context_length": None}))
    assert "llama.context_length must be an integer" in problem


def test_long_values_are_shortened(small_file):
    with pytest.raises(GGUFError, match=r"block_count .* has 'x+\.\.\. \(5,002 characters\)$"):
        load_decoder(small_file(keys={"llama.block_count": "x" * 5000}))
    with pytest.raises(GGUFError, match=r"rope scaling 'x+.*") as caught:
        load_decoder(small_file(keys={"llama.rope.scaling.type": "x" * 5000}))
    assert len(str(caught.value)) < 1000
