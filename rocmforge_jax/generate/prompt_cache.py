"""A reusable cache of a computed text prefix, in memory or in a file."""

import dataclasses
import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rocmforge_jax.arguments import shown
from rocmforge_jax.generate.snapshots import Snapshots
from rocmforge_jax.generate.steps import Steps, repeated
from rocmforge_jax.gguf.replacing import replacing
from rocmforge_jax.nn import Cache

_FORMAT = "rocmforge_jax prompt cache 2"


@dataclasses.dataclass(frozen=True)
class PromptCache:
    """The states of all layers after a text prefix. Uses copy them and never modify them.

    Attributes:
        tokens: The tokens of the prefix.
        cache: The states, of batch 1.
        model: The fingerprint of the model that computed them.
        held: The largest number of tokens that the states have ever contained; see `Cache.rewound`.
    """

    tokens: tuple[int, ...]
    cache: Cache
    model: str
    held: int

    def __repr__(self):
        return f"<PromptCache: {len(self.tokens)} tokens, {self.cache.nbytes:,} bytes>"

    @property
    def nbytes(self) -> int:
        """The size on the device in bytes."""
        return self.cache.nbytes

    def common(self, prompts: Sequence[Sequence[int]]) -> int:
        """Returns how many tokens all prompts share with the prefix, excluding their last token.

        Raises:
            ValueError: A prompt shares no token.
        """
        known = min(self._common(prompt) for prompt in prompts)
        if not known:
            other = next(prompt for prompt in prompts if not self._common(prompt))
            raise ValueError(
                f"the cache holds {len(self.tokens)} tokens of a text that begins with"
                f" {list(self.tokens[:4])}, a prompt of {len(other)} tokens begins with"
                f" {list(other[:4])}: the prompt must begin like the text of the cache"
            )
        return known

    def check(self, prompts: Sequence[Sequence[int]]) -> None:
        """Raises ValueError for prompts that cannot continue from the cache; see `start`."""
        known = self.common(prompts)
        if self.cache.rewound(self.held, known) is None:
            raise ValueError(
                f"the prompts begin with {known} of the cache's {len(self.tokens)} tokens, and the"
                " states of this model cannot be rewound so far: make a cache of what they share"
            )

    def _common(self, prompt: Sequence[int]) -> int:
        held = min(len(self.tokens), len(prompt) - 1)
        return next((i for i in range(held) if prompt[i] != self.tokens[i]), held)

    def start(
        self, prompts: Sequence[Sequence[int]], snapshot_bytes: int = 0
    ) -> tuple[Cache, int, Snapshots]:
        """Returns a copy of the cache for prompts.

        Args:
            prompts: Token ids.
            snapshot_bytes: The limit for new snapshots, in bytes.

        Returns:
            (the cache, the number of tokens of each prompt that it contains, empty snapshots).

        Raises:
            ValueError: The prompts share too little with the prefix.
        """
        self.check(prompts)
        snapshots = Snapshots(snapshot_bytes, held=self.held)
        cache, known = snapshots.rewind(repeated(self.cache, len(prompts)), self.common(prompts))
        assert cache is not None  # as checked
        return cache, known, snapshots

    def save(self, path: str | os.PathLike) -> None:
        """Writes the cache to a file in NumPy's .npz format, for `LanguageModel.load_cache`.

        An existing file is replaced once the new one is complete. Folders around it are made.
        """
        path = _checked_path(path)
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(self.cache)]
        header = {
            "format": _FORMAT,
            "model": self.model,
            "held": self.held,
            "length": self.cache.length,
        }
        arrays: dict[str, Any] = {f"leaf_{i}": _as_bytes(leaf) for i, leaf in enumerate(leaves)}
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished, open(unfinished, "wb") as file:
            tokens = np.array(self.tokens, np.int32)
            np.savez(file, header=json.dumps(header), tokens=tokens, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike, steps: Steps) -> "PromptCache":
        """Reads a file that `save` wrote.

        Args:
            path: The file.
            steps: The steps of the model that will use the cache.

        Raises:
            FileNotFoundError: The file does not exist.
            ValueError: The file is damaged, has another format, or belongs to another model.
        """
        path = _checked_path(path)
        try:
            with open(path, "rb") as raw:
                if not zipfile.is_zipfile(raw):
                    raise ValueError("it is not an .npz file")
                raw.seek(0)
                with np.load(raw, allow_pickle=False) as file:
                    header, tokens = json.loads(str(file["header"])), file["tokens"].tolist()
                    found = {name: file[name] for name in file.files if name.startswith("leaf_")}
            if header["format"] != _FORMAT:
                raise ValueError(f"its format is {header['format']!r}, not {_FORMAT!r}")
            model, held, length = (header[name] for name in ("model", "held", "length"))
        except (KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is no cache of a prompt: {error}") from error
        check_model(str(path), model, steps)
        wanted, structure = jax.tree.flatten(jax.eval_shape(lambda: steps.init_cache(1, length)))
        leaves = [found.get(f"leaf_{i}") for i in range(len(wanted))]
        arrays = [
            _from_bytes(f"{path}: array {i}", array, one)
            for i, (array, one) in enumerate(zip(leaves, wanted))
        ]
        cache = jax.tree.unflatten(structure, arrays)
        if not 0 < len(tokens) == int(cache.lengths_B[0]) <= min(length, held):
            raise ValueError(
                f"{path} is damaged: it has {len(tokens)} tokens, its states"
                f" {int(cache.lengths_B[0])} of {length}"
            )
        return cls(tuple(tokens), cache, model, held)


def _checked_path(path: Any) -> Path:
    """Returns the path of a file; raises TypeError or ValueError for what names none."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"the path of a cache must be a text or an os.PathLike, got {shown(path)}")
    if not os.fspath(path):
        raise ValueError("the path of a cache is empty: name a file")
    return Path(path)


def fingerprint(steps: Steps) -> str:
    """Returns a hash of a model's configuration, its dtypes and its weights.

    It does not depend on the layout of planes, so a file also fits another kind of device.
    """
    digest = hashlib.sha256(repr(steps.config).encode())
    abstract = jax.eval_shape(lambda: steps.init_cache(1, 1))
    digest.update(repr([leaf.dtype.name for leaf in jax.tree.leaves(abstract)]).encode())
    digest.update(repr(steps.checksums).encode())
    return digest.hexdigest()


def check_model(name: str, model: str, steps: Steps) -> None:
    """Raises ValueError unless the fingerprint `model` matches the model of `steps`."""
    if model != (own := fingerprint(steps)):
        raise ValueError(
            f"{name} was computed by another model, with other weights or in another dtype: make it"
            f" again with lm.cache. Its fingerprint is {model[:12]}, that of this"
            f" {steps.config.architecture} is {own[:12]}"
        )


def _as_bytes(array: np.ndarray) -> np.ndarray:
    """Returns the bytes of an array, since NumPy's files do not support bfloat16."""
    return np.frombuffer(array.tobytes(), np.uint8)


def _from_bytes(name: str, found: np.ndarray | None, wanted) -> jax.Array:
    size = wanted.size * wanted.dtype.itemsize
    if found is None or found.dtype != np.uint8 or found.size != size:
        got = "none" if found is None else f"{found.size}"
        raise ValueError(f"{name} must have {size} bytes, got {got}")
    return jnp.asarray(np.frombuffer(found.tobytes(), wanted.dtype).reshape(wanted.shape))
