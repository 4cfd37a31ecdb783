"""Measures the errors of the logits or embeddings of every family relative to llama.cpp.

    python benchmarks/families.py FOLDER... [--files NAME ...] [--backends auto xla]

Each FOLDER contains GGUF files, llama.cpp's logits for them in NAME.npy, and index.json with the
prompt and the positions of the logits. llama.cpp computed the logits with float32 weights, so the
rounding of activations counts as an error.

Each line of benchmarks/results/families.jsonl describes one file on one backend in one activation
mode. It contains relative L2 errors of two computations: the whole prompt at once, and the same
prompt through a cache, first in pieces and then token by token. For an embedding model
(`kind: embedding`), NAME.npy contains the pooled vector, and only the first computation is done.
"""

import argparse
import collections
import datetime
import json
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from opening import processor

from rocmforge_jax.gguf import open_gguf
from rocmforge_jax.models import ARCHITECTURES, kernel_report, load_decoder

RESULTS = Path(__file__).parent / "results" / "families.jsonl"
#: Tokens that llama.cpp was opened for, which choose the factors of LongRoPE.
CONTEXT = 1024
#: Sizes of the pieces of a prompt in tokens; the remaining tokens are computed one by one.
PIECES = (150, 7, 383)


def measure(file: Path, index: dict, backend: str, activations: str) -> dict:
    """Computes the prompt and compares what is stored."""
    gguf = open_gguf(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = dict(activations=activations, backend=backend, context_length=CONTEXT)
        decoder = load_decoder(gguf, dtype=jnp.float32, **options)
    about = index["files"][file.stem]
    ids = np.array(index["ids"], np.int32)[None, : about.get("n_ids")]
    expected = np.float64(np.load(file.with_suffix(".npy")))
    compare = _embedding if about.get("kind") == "embedding" else _logits
    with jax.default_matmul_precision("highest"):
        errors = compare(decoder, ids, index["rows"], expected)
    return {
        "architecture": gguf.architecture,
        "tokens": ids.shape[1],
        "types": dict(collections.Counter(t.format.name for t in gguf.tensors.values())),
        "attention": sorted(
            {
                entry.backend
                for entry in kernel_report(decoder)
                if entry.operation == "attention" and entry.tokens == "one token"
            }
        ),
        **errors,
    }


def _logits(decoder, ids, rows, expected) -> dict:
    """The errors of the prompt in both ways."""
    graphdef, state = nnx.split(decoder)
    leaves, treedef = jax.tree.flatten(state)

    def forward(leaves, tokens, cache=None):
        return nnx.merge(graphdef, jax.tree.unflatten(treedef, leaves))(tokens, cache)

    whole = jax.jit(forward)(leaves, ids)[0][0]
    in_parts = _through_cache(jax.jit(forward, donate_argnums=2), leaves, decoder, ids)
    return {
        "in_one_go": _errors(whole, rows, expected),
        "through_a_cache": _errors(in_parts, rows, expected),
    }


def _embedding(decoder, ids, rows, expected) -> dict:
    """The error of the pooled vector."""
    graphdef, state = nnx.split(decoder)
    embed = jax.jit(lambda state, tokens: nnx.merge(graphdef, state).embed(tokens))
    return {"in_one_go": _errors(embed(state, ids), [0], expected)}


def _through_cache(step, leaves, decoder, ids):
    """Computes pieces, then single tokens."""
    sizes = (*PIECES, *[1] * (ids.shape[1] - sum(PIECES)))
    cache, found, first = decoder.init_cache(1, ids.shape[1] + 19), [], 0
    for size in sizes:
        logits, cache = step(leaves, ids[:, first : first + size], cache)
        found.append(logits[0])
        first += size
    return np.concatenate(found)


def _errors(logits_TV, rows, expected) -> dict:
    """The relative L2 error of all rows, of the median row, and of the worst."""
    got = np.float64(np.asarray(logits_TV)[rows])
    by_row = np.linalg.norm(got - expected, axis=1) / np.linalg.norm(expected, axis=1)
    return {
        "all": float(np.linalg.norm(got - expected) / np.linalg.norm(expected)),
        "median_row": float(np.median(by_row)),
        "worst_row": float(by_row.max()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--files", nargs="+", help="default: all of known architectures")
    parser.add_argument("--backends", nargs="+", default=["auto"])
    parser.add_argument("--activations", nargs="+", default=["float", "int16"])
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    gpu = jax.default_backend() != "cpu"
    known = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": jax.devices()[0].device_kind if gpu else processor(),
        "versions": {"jax": jax.__version__},
    }
    for folder in options.folders:
        index = json.loads((folder / "index.json").read_text())
        for name, about in sorted(index["files"].items()):
            wanted = name in options.files if options.files else about["arch"] in ARCHITECTURES
            if not wanted:
                continue
            if not (folder / f"{name}.gguf").exists():
                continue
            for backend in options.backends:
                for activations in options.activations:
                    found = measure(folder / f"{name}.gguf", index, backend, activations)
                    modes = {"file": name, "backend": backend, "activations": activations}
                    line = json.dumps(known | modes | found)
                    print(line, flush=True)
                    with options.results.open("a") as results:
                        print(line, file=results)


if __name__ == "__main__":
    main()
