"""The time to encode a megabyte grows with its length, for each tokenizer model."""

import random
import time

import pytest

from rocmforge_jax.text import tokenizer_from_metadata

pytestmark = pytest.mark.core

PIECES = ["▁", "a", "b", "e", "é", "ab", "ea", "ba", "eab", "▁a", "▁ab", "▁▁", "aa", "aaaa"]


@pytest.fixture(scope="module")
def tokenizers(byte_level, sentence_piece, character_bpe, word_piece, unigram):
    scores = {piece: -float(rank) for rank, piece in enumerate(PIECES)}
    merges = ["a b", "e a", "b a", "▁ a", "▁ ab", "▁ ▁", "a a", "aa aa"]
    metadata = {
        "gpt2": byte_level(words=["ab", "ea", " ab", "aaaa"]),
        "llama": sentence_piece(scores),
        "gemma4": character_bpe(PIECES, merges),
        "bert": word_piece(PIECES),
        "t5": unigram(scores, add_space_prefix=True),
    }
    return {model: tokenizer_from_metadata(each) for model, each in metadata.items()}


def processor_seconds(tokenizer, text) -> float:
    start = time.process_time()
    tokenizer.encode(text)
    return time.process_time() - start


@pytest.mark.parametrize("model", ["gpt2", "llama", "gemma4", "bert", "t5"])
@pytest.mark.parametrize(
    "alphabet, size",
    [("abe abea \n", 500_000), ("abe", 200_000), ("a", 200_000)],
    ids=["words", "one long word", "one letter"],
)
def test_twice_the_text_takes_less_than_three_times_as_long(tokenizers, model, alphabet, size):
    text = "".join(random.Random(1).choices(alphabet, k=2 * size))
    ratios = []
    for _ in range(3):  # other programs may slow one run down
        half = processor_seconds(tokenizers[model], text[:size])
        ratios.append(processor_seconds(tokenizers[model], text) / half)
        if ratios[-1] < 3:
            return
    pytest.fail(f"{2 * size} characters take {ratios} times as long as {size}")
