"""llama.cpp's own vocabularies and texts: the same ids, and the same text back."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rocmforge_jax.text import load_tokenizer

pytestmark = pytest.mark.core

NAMES = ["llama-spm", "llama-bpe", "qwen2"]


def cases(reference, name):
    """(text, ids) pairs."""
    stem = reference / "tokenizers" / f"ggml-vocab-{name}.gguf"
    texts = stem.with_suffix(".gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    if not texts[-1]:  # most end with a separator
        texts.pop()
    lines = stem.with_suffix(".gguf.out").read_text().splitlines()
    assert len(texts) == len(lines)
    return [(text, [int(id) for id in line.split()]) for text, line in zip(texts, lines)]


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_llama_cpp(reference, reference_tokenizer, name):
    tokenizer = reference_tokenizer(name)
    for text, ids in cases(reference, name):
        assert tokenizer.encode(text) == ids, repr(text)


def test_ids_of_every_other_vocabulary_are_those_of_llama_cpp(reference, reference_tokenizer):
    """The folder may hold more of llama.cpp's vocabularies."""
    names = [path.name[11:-9] for path in (reference / "tokenizers").glob("ggml-vocab-*.gguf.inp")]
    others = sorted(set(names) - set(NAMES))
    if not others:
        pytest.skip("the folder has no other vocabularies")
    for name in others:
        for text, ids in cases(reference, name):
            assert reference_tokenizer(name).encode(text) == ids, (name, text)


@pytest.mark.parametrize("name", NAMES)
def test_ids_give_the_text_back(reference, reference_tokenizer, name):
    tokenizer = reference_tokenizer(name)
    for text, ids in cases(reference, name):
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode_bytes(ids) == text.encode()


@pytest.mark.parametrize("name", NAMES)
def test_a_long_text_is_quick_and_comes_back(reference, reference_tokenizer, name):
    tokenizer, text = (
        reference_tokenizer(name),
        (reference / "text" / "shakespeare.txt").read_text()[:1_000_000],
    )
    start = time.perf_counter()
    ids = tokenizer.encode(text)
    assert time.perf_counter() - start < 12  # takes 0.5 to 1.2 s
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    "name, special",
    [("llama-spm", (1, 2)), ("llama-bpe", (128000, 128001)), ("qwen2", (151643, 151643))],
)
def test_the_special_ids_of_the_file(reference_tokenizer, name, special):
    tokenizer = reference_tokenizer(name)
    assert (tokenizer.bos_id, tokenizer.eos_id) == special


@pytest.mark.parametrize(
    "name, stops",
    [
        ("llama-spm", {"</s>"}),
        ("llama-bpe", {"<|end_of_text|>", "<|eot_id|>"}),
        ("qwen2", {"<|endoftext|>", "<|im_end|>"}),
    ],
)
def test_the_tokens_that_end_a_generation(reference_tokenizer, name, stops):
    tokenizer = reference_tokenizer(name)
    assert {tokenizer.piece(id).decode() for id in tokenizer.stop_ids} == stops


def test_the_largest_vocabulary_is_ready_in_time(reference):
    start = time.perf_counter()
    tokenizer = load_tokenizer(reference / "tokenizers" / "ggml-vocab-qwen2.gguf")
    assert time.perf_counter() - start < 10  # the promise is 1 s on a quiet machine
    assert tokenizer.vocab_size == 151936


def test_threads_share_a_tokenizer(reference, reference_tokenizer):
    tokenizer = reference_tokenizer("qwen2")
    texts = [text for text, _ in cases(reference, "qwen2")] * 4
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tokenizer.encode, texts)) == [tokenizer.encode(text) for text in texts]


def test_tokenizing_imports_no_jax(reference):
    path = reference / "tokenizers" / "ggml-vocab-llama-spm.gguf"
    program = f"""
import sys
from rocmforge_jax.text import ChatTemplate, load_tokenizer
tokenizer = load_tokenizer({str(path)!r})
assert tokenizer.decode(tokenizer.encode("Hello world")) == "Hello world"
messages = [{{"role": "user", "content": "hi"}}]
assert ChatTemplate("{{{{ messages[0].content }}}}").render(messages) == "hi"
sys.exit("jax" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-W", "error", "-c", program]).returncode == 0
