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
    tokens, length, one = (jnp.array(n, jnp.int32) for n in ([ids], [len(ids)], [1]))
    logits, cache = jax.jit(prefill.call)(weights, tokens, length, cache)
    print(json.dumps(logits[0].tolist()))
    for _ in range(NEW):
        token = logits.argmax(axis=-1)[:, None].astype(jnp.int32)
        ids.append(int(token[0, 0]))
        logits, cache = step(weights, token, one, cache)
    print(json.dumps(ids))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(id) for id in sys.argv[2:]])
