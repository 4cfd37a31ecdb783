"""Continues token ids with exported programs, without rocmforge_jax: run_exported.py FOLDER ID...

`rf.export_program(lm, FOLDER)` writes the folder. This needs jax, flatbuffers and numpy alone.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

NEW = 12  # tokens to add


def main(folder: Path, ids: list[int]) -> None:
    names = "prefill.bin", "decode.bin"
    prefill, decode = (export.deserialize((folder / name).read_bytes()) for name in names)
    with np.load(folder / "weights.npz") as file:  # bfloat16 comes back as raw bytes
        pairs = zip(file.values(), decode.in_avals)
        weights = [jnp.asarray(array.view(aval.dtype)) for array, aval in pairs]
    sizes = {"b": 1, "s": len(ids) + NEW}
    caches = json.loads((folder / "program.json").read_text())["cache"]
    cache = [jnp.zeros([sizes.get(n, n) for n in c["shape"]], c["dtype"]) for c in caches]
    step = jax.jit(decode.call, donate_argnums=3)
    tokens = jnp.array([ids + [0] * (2 - len(ids))])  # at least 2, with padding
    logits, cache = jax.jit(prefill.call)(weights, tokens, jnp.array([len(ids)]), cache)
    print(json.dumps(logits[0].tolist()))
    for _ in range(NEW):
        ids.append(int(logits[0].argmax()))
        logits, cache = step(weights, jnp.array([ids[-1:]]), jnp.array([1]), cache)
    print(json.dumps(ids))


if __name__ == "__main__":
    folder, *ids = sys.argv[1:] or sys.exit("usage: run_exported.py FOLDER ID...")
    main(Path(folder), [int(id) for id in ids])
