"""bench: numbers that fit together."""

import json

import numpy as np
import pytest

from rocmforge_jax.cli.bench import bytes_per_token
from rocmforge_jax.gguf import open_gguf, write_gguf
from rocmforge_jax.locate import DEMO
from tests.models.synthetic_cases import CASES


@pytest.mark.core
def test_json_of_a_file_without_tokenizer(run, without_tokenizer):
    ran = run(
        "bench", without_tokenizer, "--prompt-tokens", 20, "--tokens", 9, "--repeats", 2, "--json"
    )
    result = json.loads(ran.out)
    assert (ran.code, ran.out.count("\n")) == (0, 1)
    assert [
        result[key] for key in ("model", "architecture", "prompt_tokens", "tokens", "repeats")
    ] == ["tiny.gguf", "llama", 20, 9, 2]
    numbers = [
        result[key]
        for key in (
            "open_seconds",
            "load_seconds",
            "compile_seconds",
            "prefill_tokens_per_s",
            "decode_tokens_per_s",
        )
    ]
    assert all(number > 0 for number in numbers)
    assert result["decode_gb_per_s"] == pytest.approx(
        result["decode_tokens_per_s"] * result["bytes_per_token"] / 1e9
    )
    assert (
        set(result["versions"]) == {"rocmforge-jax", "jax", "jaxlib", "python"}
        and result["platform"] == "cpu"
    )
    assert (
        "20 tokens of prompt, 9 generated, 2 times" in ran.err
        and f"reads {result['bytes_per_token']:,} bytes" in ran.err
    )


def test_text_has_a_line_for_each_number(run, without_tokenizer):
    ran = run("bench", without_tokenizer, "--prompt-tokens", 2, "--tokens", 1, "--repeats", 1)
    names = [line.rsplit(maxsplit=1)[0].strip() for line in ran.out.splitlines()]
    assert names == [
        "load, s",
        "compile, s",
        "prefill, tokens/s",
        "decode, tokens/s",
        "decode reads, GB/s",
    ]


@pytest.mark.core
@pytest.mark.parametrize("option", ["--prompt-tokens", "--tokens", "--repeats"])
def test_nothing_to_measure_is_refused(run, without_tokenizer, option):
    ran = run("bench", without_tokenizer, option, 0)
    assert (ran.code, ran.out, ran.err) == (
        2,
        "",
        f"rocmforge-jax: error: {option} must be at least 1, got 0\n",
    )


@pytest.mark.core
def test_more_than_the_context_is_refused_with_the_numbers(run, without_tokenizer):
    ran = run("bench", without_tokenizer, "--prompt-tokens", 40, "--tokens", 24)
    assert (ran.code, ran.out) == (
        2,
        "",
    ) and "40 + 24 + 1 tokens are 65, the context is 64" in ran.err


@pytest.mark.core
def test_a_token_reads_a_tied_embedding_and_not_one_beside_a_head(without_tokenizer):
    demo, own_head = open_gguf(DEMO), open_gguf(without_tokenizer)
    assert bytes_per_token(demo) == sum(tensor.nbytes for tensor in demo.tensors.values())
    rest = [
        tensor.nbytes for name, tensor in own_head.tensors.items() if name != "token_embd.weight"
    ]
    assert bytes_per_token(own_head) == sum(rest)


@pytest.mark.core
@pytest.mark.parametrize("name", ["position_embd", "token_types", "per_layer_token_embd"])
def test_a_token_reads_one_row_of_other_embeddings(tmp_path, name):
    keys = {"general.architecture": "gpt2"}
    tensors = {"token_embd": np.zeros((5, 32), np.float32), name: np.zeros((7, 32), np.float32)}
    write_gguf(
        tmp_path / "a.gguf", keys, {f"{name}.weight": ("F32", one) for name, one in tensors.items()}
    )
    assert bytes_per_token(open_gguf(tmp_path / "a.gguf")) == 5 * 32 * 4


@pytest.mark.core
def test_learned_positions_limit_the_context(run, tmp_path):
    case = next(case for case in CASES if case.name == "starcoder")
    case.write(tmp_path / "small.gguf")
    sizes = "--context-length", 400, "--prompt-tokens", 240, "--tokens", 20
    ran = run("bench", tmp_path / "small.gguf", *sizes)
    assert (ran.code, ran.out) == (2, "")
    assert "240 + 20 + 1 tokens are 261, the context is 256" in ran.err


@pytest.mark.core
def test_a_token_reads_the_experts_it_uses(tmp_path):
    experts = np.zeros((8, 4, 32), np.float32)
    tensors = {
        "token_embd.weight": ("F32", experts[0]),
        "blk.0.ffn_up_exps.weight": ("F32", experts),
    }
    metadata = {"general.architecture": "m", "m.expert_count": 8, "m.expert_used_count": 2}
    write_gguf(tmp_path / "moe.gguf", metadata, tensors)
    assert bytes_per_token(open_gguf(tmp_path / "moe.gguf")) == 4 * 32 * 4 + 2 * 4 * 32 * 4


def test_the_context_may_be_shorter(run):
    words = "bench demo --prompt-tokens 5 --tokens 4 --context-length".split()
    ran = run(*words, 9)
    assert ran.code == 2 and "5 + 4 + 1 tokens are 10, the context is 9" in ran.err
    assert run(*words, 10, "--repeats", 1, "--json").code == 0
