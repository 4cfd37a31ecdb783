"""Builds a tokenizer from the metadata of a GGUF file."""

import operator
import os
from collections.abc import Iterable, Mapping
from typing import Any

from rocmforge_jax.arguments import flag
from rocmforge_jax.gguf import GGUFError, open_gguf
from rocmforge_jax.gguf.errors import about_file
from rocmforge_jax.text import metadata as meta
from rocmforge_jax.text.keys import report_unknown_keys
from rocmforge_jax.text.pretokenizers import nearest
from rocmforge_jax.text.special_ids import ID_KEYS
from rocmforge_jax.text.special_tokens import SpecialToken, special_tokens, split
from rocmforge_jax.text.stream import ByteStream, TextStream
from rocmforge_jax.text.surrogates import check_text
from rocmforge_jax.text.token_types import TokenType
from rocmforge_jax.text.tokenizer_models import MODELS, Codec, Ends
from rocmforge_jax.text.vocabulary import Vocabulary


class Tokenizer:
    """Converts text to token ids and back, with the vocabulary of one GGUF file.

    It is immutable, so threads may share it.

    Attributes:
        vocab_size: The number of tokens.
        stop_ids: The tokens that end a generation.
        suppressed_ids: The tokens that are never generated (`tokenizer.ggml.suppress_tokens`).
        add_bos, add_eos, add_sep: Which tokens `encode` with `add_special` adds to a text.
        add_space_prefix: Whether encoding inserts a space before a text and decoding removes it.
        bos_id, eos_id, eot_id, eom_id: The ids of these tokens; None if the vocabulary lacks one.
        unk_id, sep_id, pad_id, mask_id: Likewise.
        fim_pre_id, fim_suf_id, fim_mid_id: Likewise, for infilling.
        special: Text -> id of the control and user-defined tokens, longest first.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        codec: Codec,
        special: list[SpecialToken],
        *,
        add_bos: bool,
        add_eos: bool,
        add_sep: bool = False,
    ):
        self._vocabulary, self._codec = vocabulary, codec
        self._types = vocabulary.types.tolist()
        self._always_read = [token for token in special if token.type == TokenType.USER_DEFINED]
        self._special = special
        self.special = {token.text: token.id for token in special}
        self.vocab_size, self.stop_ids = len(vocabulary), vocabulary.stop_ids
        self.suppressed_ids = vocabulary.suppressed_ids
        self.add_bos, self.add_eos, self.add_sep = add_bos, add_eos, add_sep
        self.add_space_prefix = codec.space_prefix
        id_of = vocabulary.ids.get
        self.bos_id, self.eos_id, self.eot_id, self.eom_id = (
            id_of("bos"),
            id_of("eos"),
            id_of("eot"),
            id_of("eom"),
        )
        self.unk_id, self.sep_id, self.pad_id, self.mask_id = (
            id_of("unk"),
            id_of("sep"),
            id_of("pad"),
            id_of("mask"),
        )
        self.fim_pre_id, self.fim_suf_id, self.fim_mid_id = (
            id_of("fim_pre"),
            id_of("fim_suf"),
            id_of("fim_mid"),
        )

    def __repr__(self) -> str:
        return (
            f"Tokenizer({type(self._codec).__name__.removesuffix('Codec')}, {self.vocab_size}"
            " tokens)"
        )

    def encode(
        self,
        text: str,
        *,
        add_special: bool = False,
        parse_special: bool = False,
        strict: bool = False,
        mark: str | None = None,
    ) -> list[int]:
        """Returns the token ids of a text.

        Args:
            text: Any valid Unicode.
            add_special: Whether to add the start token (bos) and the end token (eos or sep) that
                the file specifies, unless the text already has them.
            parse_special: Whether to read control tokens spelled in the text, as chat templates
                require. By default "<|im_end|>" is plain text. User-defined tokens are always read.
            strict: Whether to raise an error for bytes that the vocabulary lacks, instead of
                dropping them with a warning.
            mark: A character that is removed after the special tokens were read. Inside a spelled
                token it keeps that token plain text.

        Raises:
            ValueError: The text is not valid Unicode, or `strict` is set and the vocabulary lacks a
                byte.
        """
        if not isinstance(text, str):
            raise TypeError(f"a text is a str, got {type(text).__name__}")
        # `tokenizers` would raise a wrong TypeError.
        check_text("the text", text.replace(mark, "") if mark else text)
        strict = flag("strict", strict)
        is_read = flag("parse_special", parse_special)
        parts = split(text, self._special if is_read else self._always_read)
        if mark:
            plain = (part.replace(mark, "") if isinstance(part, str) else part for part in parts)
            parts = [part for part in plain if part != ""]
        encoded, lacking = self._codec.encode([part for part in parts if isinstance(part, str)])
        _report_lacking(lacking, strict)
        texts = iter(encoded)
        ids: list[int] = []
        for part in parts:
            ids.extend(next(texts) if isinstance(part, str) else (part,))
        return self._with_ends(ids) if flag("add_special", add_special) else ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Returns the text of `ids`, with U+FFFD for bytes that are not UTF-8.

        Args:
            ids: Token ids.
            skip_special: Whether to leave control tokens out.
        """
        return self.decode_bytes(ids, skip_special=skip_special).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int], *, skip_special: bool = False) -> bytes:
        """Returns the bytes of `ids`, which may end inside a character. See `decode`."""
        return ByteStream(self, skip_special=skip_special).push(ids)

    def stream(self, *, skip_special: bool = False, after: Iterable[int] = ()) -> TextStream:
        """Returns a stream that decodes ids as they arrive.

        Args:
            skip_special: Whether to leave control tokens out.
            after: The preceding ids, such as a prompt. If empty, the first id starts a text.
        """
        return TextStream(ByteStream(self, skip_special=skip_special, after=after))

    def piece(self, id: int) -> bytes:
        """Returns the bytes of one token.

        A special token yields its text, an unused one b"".

        Raises:
            ValueError: The id is outside the vocabulary.
        """
        token, token_type = self._vocabulary.tokens[self._checked(id)], self._types[id]
        if token_type in (TokenType.UNUSED, TokenType.UNDEFINED):
            return b""
        if token_type == TokenType.BYTE:
            return bytes([int(token[3:5], 16)])
        if isinstance(token, bytes):
            return token
        return token.encode() if self.is_special(id) else self._codec.decode(token)

    def is_control(self, id: int) -> bool:
        """Returns whether a token is not text, such as the end of a turn or the unknown token."""
        return self._types[self._checked(id)] in (TokenType.CONTROL, TokenType.UNKNOWN)

    def is_special(self, id: int) -> bool:
        """Returns whether a token is never merged from text: a control or user-defined token."""
        return self._types[self._checked(id)] in (
            TokenType.CONTROL,
            TokenType.UNKNOWN,
            TokenType.USER_DEFINED,
        )

    def _checked(self, id) -> int:
        if isinstance(id, bool):  # `operator.index` would accept it
            raise TypeError(f"a token id is an integer, got {id!r}")
        try:
            number = operator.index(id)
        except TypeError:
            raise TypeError(f"a token id is an integer, got {id!r}") from None
        if not 0 <= number < self.vocab_size:
            raise ValueError(f"token id {id} is outside the vocabulary of {self.vocab_size} tokens")
        return number

    def _with_ends(self, ids: list[int]) -> list[int]:
        first = self.bos_id if self.add_bos else None
        last = self.sep_id if self.add_sep else self.eos_id if self.add_eos else None
        start = [] if first is None or self._is_written(first, ids[:1]) else [first]
        end = [] if last is None or self._is_written(last, ids[-1:]) else [last]
        return start + ids + end

    def _is_written(self, end: int, ids: list[int]) -> bool:
        """Returns whether `ids`, the first or last id of a text, is already the special token."""
        return ids == [end] and self.is_special(end)


def _report_lacking(lacking: list[str], strict: bool) -> None:
    if not lacking:
        return
    more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
    message = f"the vocabulary has no token for {', '.join(lacking[:5])}{more} of the text"
    if strict:
        raise ValueError(message)
    meta.warn(f"{message}, which is left out")


def load_tokenizer(path: str | os.PathLike, *, strict: bool = False) -> Tokenizer:
    """Returns the tokenizer of a GGUF file. The file needs no weights.

    Args:
        path: The GGUF file.
        strict: Whether to raise an error for unknown keys, instead of a warning.
    """
    strict = flag("strict", strict)
    gguf = open_gguf(path)
    with about_file(gguf.path):
        return tokenizer_from_metadata(gguf.metadata, strict=strict)


def tokenizer_from_metadata(metadata: Mapping[str, Any], *, strict: bool = False) -> Tokenizer:
    """Returns the tokenizer that the `tokenizer.ggml.*` keys describe.

    Args:
        metadata: The key-value pairs of a GGUF file.
        strict: Whether to raise an error for unknown keys, instead of a warning.

    Raises:
        GGUFError: A value is invalid. GGUFError is a ValueError.
    """
    strict = flag("strict", strict)
    if metadata.get("tokenizer.ggml.model") in (None, "none", "no_vocab"):
        raise GGUFError(
            "the file has no tokenizer (tokenizer.ggml.model): convert the model again with its"
            " tokenizer, or load its decoder alone with models.load_decoder(rf.open_gguf(path))"
        )
    model = meta.string(metadata, "tokenizer.ggml.model")
    if model not in MODELS:
        raise GGUFError(
            f"tokenizer.ggml.model is {model!r}, which is no known tokenizer:"
            f" {nearest(model, MODELS)}"
        )
    report_unknown_keys(metadata, model, strict)
    vocabulary, codec, ends = MODELS[model](metadata)
    return Tokenizer(
        vocabulary,
        codec,
        special_tokens(vocabulary, metadata),
        add_bos=_adds(metadata, vocabulary, "bos", ends),
        add_eos=not ends.sep and _adds(metadata, vocabulary, "eos", ends),
        add_sep=ends.sep and _adds(metadata, vocabulary, "sep", ends),
    )


def _adds(metadata, vocabulary: Vocabulary, name: str, ends: Ends) -> bool:
    """Returns whether `encode` with `add_special` adds the token of this name."""
    key = f"tokenizer.ggml.add_{name}_token"
    adds = meta.boolean(metadata, key, getattr(ends, name))
    if name in ends.always and not adds:
        adds = True
        meta.warn(f"{key} is False: as in llama.cpp, texts get a {name} token all the same")
    if adds and name not in vocabulary.ids:
        meta.warn(
            f"texts are to get a {name} token, but the file has no"
            f" tokenizer.ggml.{ID_KEYS[name][0]}: they get none"
        )
        return False
    return adds
