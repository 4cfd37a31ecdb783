"""Small vocabularies as metadata, and the reference vocabularies of llama.cpp."""

import numpy as np
import pytest

from rocmforge_jax.text import load_tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def byte_alphabet() -> list[str]:
    """GPT-2's character for each byte, from the rule in its release: printable bytes are
    themselves, the others U+0100 and on.
    """
    printable = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) if b in printable else chr(256 + others.index(b)) for b in range(256)]


def as_byte_text(text: str) -> str:
    alphabet = byte_alphabet()
    return "".join(alphabet[byte] for byte in text.encode())


@pytest.fixture(scope="session")
def byte_level():
    """A function: (words that are tokens, {special text: type}, further keys) -> metadata of a
    byte-level vocabulary.

    Ids 0 to 255 are the bytes; then come the words with whatever their merges need, then the
    special tokens.
    """

    def make(words=(), special=(), **keys):
        tokens, merges = byte_alphabet(), []
        for word in map(as_byte_text, words):
            for end in range(2, len(word) + 1):
                if word[:end] not in tokens:
                    tokens.append(word[:end])
                    merges.append(f"{word[: end - 1]} {word[end - 1]}")
        special = dict(special)
        types = [NORMAL] * len(tokens) + list(special.values())
        return {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": tokens + list(special),
            "tokenizer.ggml.token_type": np.array(types, np.int32),
            "tokenizer.ggml.merges": merges,
        } | {f"tokenizer.ggml.{key}": value for key, value in keys.items()}

    return make


@pytest.fixture(scope="session")
def sentence_piece():
    """A function: ({piece: score}, {special text: type}, further keys) -> metadata of a
    SentencePiece vocabulary.

    Ids 0 to 2 are <unk>, <s>, </s>, then 256 bytes, the pieces, and the special tokens.
    """

    def make(pieces, special=(), **keys):
        special = dict(special)
        tokens = [
            "<unk>",
            "<s>",
            "</s>",
            *(f"<0x{byte:02X}>" for byte in range(256)),
            *pieces,
            *special,
        ]
        types = (
            [UNKNOWN, CONTROL, CONTROL]
            + [BYTE] * 256
            + [NORMAL] * len(pieces)
            + list(special.values())
        )
        return {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": np.array(
                [0.0] * 259 + list(pieces.values()) + [0.0] * len(special), np.float32
            ),
            "tokenizer.ggml.token_type": np.array(types, np.int32),
        } | {f"tokenizer.ggml.{key}": value for key, value in keys.items()}

    return make


@pytest.fixture(scope="session")
def character_bpe():
    """A function: (tokens, merges, further keys) -> metadata of Gemma 4's kind of vocabulary.

    Ids 0 to 3 are <pad>, <eos>, <bos>, <unk>, then 256 bytes and the tokens.
    """

    def make(tokens, merges=(), **keys):
        named = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
        types = [CONTROL] * 3 + [UNKNOWN] + [BYTE] * 256 + [NORMAL] * len(tokens)
        return {
            "tokenizer.ggml.model": "gemma4",
            "tokenizer.ggml.tokens": [*named, *tokens],
            "tokenizer.ggml.token_type": np.array(types, np.int32),
            "tokenizer.ggml.merges": list(merges),
            "tokenizer.ggml.bos_token_id": 2,
            "tokenizer.ggml.eos_token_id": 1,
        } | {f"tokenizer.ggml.{key}": value for key, value in keys.items()}

    return make


@pytest.fixture(scope="session")
def word_piece():
    """A function: (tokens, further keys) -> metadata of BERT's kind of vocabulary.

    Ids 0 to 4 are [PAD], [UNK], [CLS], [SEP] and [MASK], then the tokens.
    """

    def make(tokens, **keys):
        named = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        types = [CONTROL] * len(named) + [NORMAL] * len(tokens)
        return {
            "tokenizer.ggml.model": "bert",
            "tokenizer.ggml.tokens": [*named, *tokens],
            "tokenizer.ggml.token_type": np.array(types, np.int32),
            "tokenizer.ggml.unknown_token_id": 1,
            "tokenizer.ggml.bos_token_id": 2,
            "tokenizer.ggml.seperator_token_id": 3,
        } | {f"tokenizer.ggml.{key}": value for key, value in keys.items()}

    return make


@pytest.fixture(scope="session")
def unigram():
    """A function: ({piece: score}, {special text: type}, further keys) -> metadata of T5's kind of
    vocabulary.

    Ids 0 to 2 are <pad>, </s> and <unk>, then the pieces and the special tokens.
    """

    def make(pieces, special=(), **keys):
        special = dict(special)
        types = [CONTROL, CONTROL, UNKNOWN] + [NORMAL] * len(pieces) + list(special.values())
        scores = [0.0] * 3 + list(pieces.values()) + [0.0] * len(special)
        return {
            "tokenizer.ggml.model": "t5",
            "tokenizer.ggml.tokens": ["<pad>", "</s>", "<unk>", *pieces, *special],
            "tokenizer.ggml.scores": np.array(scores, np.float32),
            "tokenizer.ggml.token_type": np.array(types, np.int32),
        } | {f"tokenizer.ggml.{key}": value for key, value in keys.items()}

    return make


@pytest.fixture(scope="session")
def reference_tokenizer(reference):
    """A function: name of a reference vocabulary -> its Tokenizer, loaded once."""
    loaded = {}

    def load(name: str):
        if name not in loaded:
            loaded[name] = load_tokenizer(reference / "tokenizers" / f"ggml-vocab-{name}.gguf")
        return loaded[name]

    return load


@pytest.fixture(scope="session")
def merge_all(byte_level):
    """A function: text -> metadata of a vocabulary of all its parts, in which any two neighbours
    merge.
    """

    def make(text):
        text = as_byte_text(text)
        parts = {
            text[start:end] for start in range(len(text)) for end in range(start + 1, len(text) + 1)
        }
        tokens = byte_alphabet()
        tokens += sorted(parts - set(tokens))
        merges = [
            f"{part[:cut]} {part[cut:]}" for part in sorted(parts) for cut in range(1, len(part))
        ]
        types = np.full(len(tokens), NORMAL, np.int32)
        return byte_level(tokens=tokens, merges=merges, token_type=types)

    return make
