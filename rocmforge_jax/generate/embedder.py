"""Embeddings: token ids in, vectors out, in batches of a few shapes."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rocmforge_jax.generate.flat import FlatDecoder
from rocmforge_jax.generate.steps import SMALLEST_BUCKET
from rocmforge_jax.models import Decoder
from rocmforge_jax.models.sharding import on_every_device
from rocmforge_jax.progress import progress_bar

#: Tokens of a batch, padding included, on CPUs and on GPUs; a longer text is a batch of its own.
BATCH_TOKENS, BATCH_TOKENS_ON_GPUS = 2048, 16384
#: Most texts of a batch.
BATCH_TEXTS = 64


class Embedder:
    """Embeds texts with a decoder. It uses the decoder's arrays, not copies of them.

    Texts are embedded with the arrays that the decoder has when `embed` is called, so a decoder may
    be trained in place. Nothing is compiled again unless its structure changes.

    Texts of about the same length are computed together, padded to a power of two, so that few
    programs are compiled. Padding changes no vector by more than rounding.

    Attributes:
        longest: Most tokens of a text.
        batch_tokens: Tokens of a batch, padding included.
    """

    def __init__(self, decoder: Decoder, context_length: int):
        """Splits the decoder; nothing is compiled yet."""
        self._decoder, self._flat = decoder, FlatDecoder.of(decoder)
        self.longest = decoder.config.text_length(context_length)
        on_cpu = jax.default_backend() == "cpu"
        self.batch_tokens = BATCH_TOKENS if on_cpu else BATCH_TOKENS_ON_GPUS
        self._embed = _jitted(self._flat)

    def _leaves(self) -> list[jax.Array]:
        """Returns the decoder's current arrays; recompiles only if its structure has changed."""
        if not self._flat.is_of(self._decoder):
            flat, before = FlatDecoder.of(self._decoder), self._flat.structure
            self._flat = flat
            if flat.structure != before:
                self._embed = _jitted(flat)
        return self._flat.leaves

    def embed(
        self,
        texts: Sequence[Sequence[int]],
        *,
        pooling: str,
        normalize: bool,
        progress: bool | None = None,
    ) -> list[np.ndarray]:
        """Computes a vector for each text, float32, in the order of the texts.

        Args:
            texts: Token ids, 1 to `longest` each.
            pooling: See `Decoder.embed`. "none" gives a vector for each token.
            normalize: Whether every vector is divided by its L2 norm.
            progress: Whether to show a bar on stderr. Default: if that is a terminal and there is
                something to wait for.

        Raises:
            FloatingPointError: A vector is not finite.
        """
        found: list[np.ndarray] = [np.zeros(0, np.float32)] * len(texts)
        leaves = self._leaves()
        options: dict[str, Any] = dict(total=len(texts), unit="text", desc="embed", delay=1)
        with progress_bar(progress=progress, **options) as bar:
            for numbers, tokens, lengths in self._batches(texts):
                vectors = np.asarray(self._embed(leaves, tokens, lengths, pooling, normalize))
                for row, number, length in zip(vectors, numbers, lengths):
                    found[number] = row[:length] if pooling == "none" else row
                    if not np.isfinite(found[number]).all():
                        raise FloatingPointError(
                            f"the embedding of text {number} is not finite: the model overflowed in"
                            " its dtype, or its weights are damaged"
                        )
                bar.update(len(numbers))
        return found

    def _batches(self, texts) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
        """Yields batches, longest texts first: numbers of texts, padded ids, and lengths."""
        of_lengths: dict[int, list[int]] = {}
        for number in sorted(range(len(texts)), key=lambda i: -len(texts[i])):
            of_lengths.setdefault(self._padded(len(texts[number])), []).append(number)
        for padded, numbers in of_lengths.items():
            rows = min(BATCH_TEXTS, _power_below(max(1, self.batch_tokens // padded)))
            for first in range(0, len(numbers), rows):
                batch = numbers[first : first + rows]
                tokens = np.zeros((_power_above(len(batch)), padded), np.int32)
                lengths = np.zeros(len(tokens), np.int32)
                for row, number in enumerate(batch):
                    lengths[row] = len(texts[number])
                    tokens[row, : lengths[row]] = texts[number]
                yield batch, tokens, lengths

    def _padded(self, tokens: int) -> int:
        return max(tokens, min(max(SMALLEST_BUCKET, _power_above(tokens)), self.longest))


def _jitted(flat: FlatDecoder):
    """Returns the jitted `Decoder.embed` of arrays of a structure."""
    merge = flat.merge

    @functools.partial(jax.jit, static_argnums=(3, 4))
    def embed(leaves, tokens_BT, lengths_B, pooling, normalize):
        decoder = merge(leaves)
        vectors = decoder.embed(tokens_BT, lengths_B, pooling=pooling)
        vectors = on_every_device(vectors, decoder)
        return _normalized(vectors) if normalize else vectors

    return embed


def _normalized(vectors):
    """Divides vectors by their L2 norms; a vector of zeros stays as it is."""
    norms = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.where(norms > 0, norms, 1)


def _power_above(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _power_below(number: int) -> int:
    return 1 << (number.bit_length() - 1)
