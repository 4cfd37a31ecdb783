"""Writes a model as StableHLO programs, which run without this package."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export

from rocmforge_jax.arguments import integer, shown
from rocmforge_jax.backends import Numerics
from rocmforge_jax.models import Decoder

_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
#: Stand for the batch and the slots in a shape.
_BATCH, _SLOTS = "b", "s"
#: Sizes at which the shapes of a cache are compared: beyond every window, and unlike other sizes.
_SOME_BATCHES, _SOME_SLOTS = (3, 5), (1 << 21, 1 << 22)


@dataclasses.dataclass(frozen=True)
class ExportedProgram:
    """A model as two programs of arrays.

    Both are called as program.call(weights, tokens_BT, lengths_B, cache) and return logits_BV,
    those of the last real token of each row, and the cache with the tokens in it. Nothing checks
    that the cache has room for them.

    Attributes:
        prefill: Takes prompts, tokens int32 [B, T] of which the first lengths_B int32 [B] are real.
        decode: Takes one token of each sequence, int32 [B, 1].
        weights: By the names of the model's variables, in the order of the programs' list.
        cache: Shape and dtype of each array of the cache; an empty one is zeros.
        context_length: Most tokens of a text.
    """

    prefill: export.Exported
    decode: export.Exported
    weights: dict[str, jax.Array]
    cache: tuple[jax.ShapeDtypeStruct, ...]
    context_length: int

    def empty_cache(self, batch: int, slots: int) -> list[jax.Array]:
        """Makes a cache for `batch` sequences of up to `slots` tokens."""
        sizes = {_BATCH: integer("batch", batch, 1), _SLOTS: integer("slots", slots, 1)}
        return [
            jnp.zeros([sizes.get(str(size), size) for size in one.shape], one.dtype)
            for one in self.cache
        ]

    def save(self, folder: str | os.PathLike) -> None:
        """Writes prefill.bin, decode.bin, weights.npz and program.json into a folder.

        Raises ImportError without flatbuffers, which the extra `export` has.
        """
        try:
            programs = {
                name: getattr(self, name).serialize(vjp_order=0) for name in ("prefill", "decode")
            }
        except ImportError:
            raise ImportError(
                "saving programs needs flatbuffers: pip install 'rocmforge-jax[export]'"
            ) from None
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, program in programs.items():
            (folder / f"{name}.bin").write_bytes(program)
        arrays: Any = {name: np.asarray(array) for name, array in self.weights.items()}
        np.savez(folder / "weights.npz", **arrays)
        cache = [
            {"shape": [size if isinstance(size, int) else str(size) for size in one.shape]}
            | {"dtype": str(one.dtype)}
            for one in self.cache
        ]
        about = {"context_length": self.context_length, "cache": cache}
        (folder / "program.json").write_text(json.dumps(about, indent=1) + "\n")

    def __repr__(self):
        nbytes = sum(array.nbytes for array in self.weights.values())
        return (
            f"<ExportedProgram for {', '.join(self.prefill.platforms)}: {len(self.weights)} weights"
            f" of {nbytes:,} bytes, {len(self.cache)} arrays of cache>"
        )


def export_program(
    model: Any,
    path: str | os.PathLike | None = None,
    *,
    platforms: Sequence[str] = ("cpu", "cuda", "rocm"),
    batch: int | None = None,
    length: int | None = None,
) -> ExportedProgram:
    """Exports a model as StableHLO: a program for prompts and one for single tokens.

    Every operation is plain XLA's, whatever backend the model computes with, so that the programs
    hold no kernels of this package. Weights stay packed, in the layout that this machine gave them,
    and are arguments.

    Args:
        model: A decoder or a language model.
        path: A folder to save the programs and the weights in, or None.
        platforms: What the programs are lowered for.
        batch: Sequences, None for any number. A fixed batch of 1 decodes faster on CPUs.
        length: Tokens of a padded prompt, at least 2; None for any number of at least 2.

    Raises:
        ValueError: The model has no cache, or some operation of it needs a fixed batch or length.
    """
    model = getattr(model, "model", model)
    if not isinstance(model, Decoder):
        raise TypeError(f"export_program takes a Decoder, got a {type(model).__name__}")
    plain = _in_plain_xla(model)
    graphdef, state = nnx.split(plain)
    paths, structure = jax.tree_util.tree_flatten_with_path(state)
    weights = {_name(path): array for path, array in paths}

    platforms = _checked(platforms)
    marked, empty = _marked_cache(plain)

    def lowered(tokens: int | None):
        symbols = _Symbols.of(batch, tokens, marked)
        cache = symbols.put_into(marked)
        structure_of_cache = jax.tree.structure(dataclasses.replace(empty, length=symbols.slots))

        def step(weights, tokens_BT, lengths_B, cache):
            decoder = nnx.merge(graphdef, jax.tree.unflatten(structure, weights))
            held = jax.tree.unflatten(structure_of_cache, cache)
            logits, held = decoder(tokens_BT, held, lengths_B=lengths_B, last_only=True)
            return logits, jax.tree.leaves(held)

        arguments = (
            [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in weights.values()],
            jax.ShapeDtypeStruct((symbols.batch, symbols.tokens), jnp.int32),
            jax.ShapeDtypeStruct((symbols.batch,), jnp.int32),
            cache,
        )
        return export.export(jax.jit(step), platforms=platforms)(*arguments), cache

    try:
        prefill, _ = lowered(None if length is None else integer("length", length, 2))
        decode, cache = lowered(1)
    except jax.errors.InconclusiveDimensionOperation as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"an operation of this {model.config.architecture} needs a fixed size: give batch and"
            f" length. {reason}"
        ) from error
    program = ExportedProgram(prefill, decode, weights, tuple(cache), model.config.context_length)
    if path is not None:
        program.save(path)
    return program


@dataclasses.dataclass(frozen=True)
class _Symbols:
    """The sizes of a program, each an int or a symbolic dimension."""

    batch: Any
    tokens: Any
    slots: Any

    @classmethod
    def of(cls, batch: int | None, tokens: int | None, marked) -> "_Symbols":
        """Makes a symbol of each size that is not given; of the slots, if the cache has some."""
        has_slots = any(_SLOTS in shape for shape, _ in marked)
        names = [_BATCH, *([] if tokens else ["t"]), *([_SLOTS] if has_slots else [])]
        constraints = [] if tokens else ["t >= 2"]
        if has_slots:
            constraints.append(f"s >= {tokens or 't'}")
        elif not tokens:
            constraints.append(f"t <= {_SOME_SLOTS[0]}")
        made = dict(zip(names, export.symbolic_shape(", ".join(names), constraints=constraints)))
        return cls(
            made[_BATCH] if batch is None else integer("batch", batch, 1),
            tokens or made["t"],
            made.get(_SLOTS, _SOME_SLOTS[0]),
        )

    def put_into(self, marked) -> list[jax.ShapeDtypeStruct]:
        """Returns the arrays of a cache of these sizes."""
        sizes = {_BATCH: self.batch, _SLOTS: self.slots}
        return [
            jax.ShapeDtypeStruct(tuple(sizes.get(size, size) for size in shape), dtype)
            for shape, dtype in marked
        ]


def _marked_cache(model: Decoder) -> tuple[list[tuple[list, Any]], Any]:
    """Returns shape and dtype of each array of a cache, with marks in the shapes; and a cache.

    Which sizes depend on the batch and on the slots is found by making caches of several sizes. A
    ring buffer always has its full size.
    """

    def shapes(batch, slots):
        return jax.eval_shape(lambda: model.init_cache(batch, slots))

    first = shapes(_SOME_BATCHES[0], _SOME_SLOTS[0])
    others = shapes(_SOME_BATCHES[1], _SOME_SLOTS[0]), shapes(_SOME_BATCHES[0], _SOME_SLOTS[1])
    marked = []
    for arrays in zip(*map(jax.tree.leaves, (first, *others))):
        sizes = zip(*(array.shape for array in arrays))
        shape = [_BATCH if a != b else _SLOTS if a != c else a for a, b, c in sizes]
        marked.append((shape, arrays[0].dtype))
    return marked, first


def _name(path) -> str:
    """Returns the name of an array: "blk.0.attn_q.kernel.planes.d"."""
    parts = jax.tree_util.keystr(path, simple=True, separator=".").split(".")
    return ".".join(part for part in parts if part != "value")  # of a variable


def _checked(platforms: Sequence[str]) -> tuple[str, ...]:
    """Returns the platforms, or raises ValueError unless they are some that are known."""
    names = (platforms,) if isinstance(platforms, str) else tuple(platforms)
    if not names or not set(names) <= set(_PLATFORMS):
        raise ValueError(f"platforms are some of {', '.join(_PLATFORMS)}, got {shown(names)}")
    return names


def _in_plain_xla(model: Decoder) -> Decoder:
    """Returns a model that shares all arrays and computes everything in plain XLA."""
    new = nnx.merge(*nnx.split(model))
    modules: Any = nnx.iter_modules(new)
    for _, module in modules:
        if isinstance(numerics := vars(module).get("numerics"), Numerics):
            module.numerics = dataclasses.replace(numerics, backend="xla")
    return new
