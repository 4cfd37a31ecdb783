"""SentencePiece BPE, one of the two ways in which a vocabulary holds text. See `bpe`."""

from collections.abc import Iterator

from tokenizers import Tokenizer
from tokenizers.models import BPE

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.text.token_types import TokenType
from rocmforge_jax.text.vocabulary import Vocabulary

_SPACE = "▁"  # SentencePiece's name for a space
# characters; the time to find a piece's merges grows with the square, and the longest in use has
# about 64
_LONGEST_PIECE = 512


class SentencePieceCodec:
    """SentencePiece BPE, which `tokenizer.ggml.model` calls llama.

    The pair with the best score merges first; unknown characters become bytes.
    """

    def __init__(self, vocabulary: Vocabulary, space_prefix: bool):
        self.space_prefix = space_prefix
        unknown = vocabulary.tokens[vocabulary.ids["unk"]] if "unk" in vocabulary.ids else None
        if unknown not in vocabulary.index:
            unknown = None
        if unknown is None and not all(
            f"<0x{byte:02X}>" in vocabulary.index for byte in range(256)
        ):
            raise GGUFError(
                "the vocabulary has neither an unknown token nor all 256 byte tokens: some texts"
                " have no ids"
            )
        self._tokenizer = Tokenizer(
            BPE(
                vocabulary.index,
                _merges_by_score(vocabulary),
                unk_token=unknown,
                fuse_unk=True,
                byte_fallback=True,
            )
        )

    def encode(self, texts: list[str]) -> Iterator[list[int]]:
        """The ids of each text."""
        start = _SPACE if self.space_prefix else ""
        pieces = [start + text.replace(" ", _SPACE) for text in texts]
        return (
            encoding.ids
            for encoding in self._tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
        )

    def decode(self, token: str) -> bytes:
        """The bytes of an ordinary token."""
        return token.replace(_SPACE, " ").encode()


def _merges_by_score(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Every way to make a token of two tokens, best score first.

    SentencePiece takes the leftmost of pairs with equal scores. `tokenizers` ranks pairs, not
    places: among equals the one with the longest left part goes first, which is the same for runs
    of one character (Llama's runs of spaces all have one score).
    """
    if vocabulary.scores is None:
        raise GGUFError("the file has no tokenizer.ggml.scores: SentencePiece merges by score")
    textual = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)
    scores, types = vocabulary.scores.tolist(), vocabulary.types.tolist()
    score = {text: scores[id] for text, id in vocabulary.index.items() if types[id] in textual}
    longest = max(score, key=len, default="")
    if len(longest) > _LONGEST_PIECE:
        raise GGUFError(
            f"token {vocabulary.index[longest]} has {len(longest)} characters, a piece has at most"
            f" {_LONGEST_PIECE}"
        )
    merges = [
        (-score[text], -cut, text[:cut], text[cut:])
        for text in score
        for cut in range(1, len(text))
        if text[:cut] in score and text[cut:] in score
    ]
    merges.sort(key=lambda merge: merge[:2])
    return [merge[2:] for merge in merges]
