"""Loading needs little memory beyond what stays: 1.2 times the largest tensor and 200 MB, in a
process that has run one jit.
"""

import json
import subprocess
import sys

import numpy as np
import pytest

from rocmforge_jax import formats
from rocmforge_jax.gguf import write_gguf

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="reads /proc/self/status"
)

PROGRAM = """
import gc, json, sys, threading, time
import jax, jax.numpy as jnp
from flax import nnx
from rocmforge_jax import open_gguf
from rocmforge_jax.models import load_decoder

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

jax.jit(lambda x: x + 1)(jnp.ones(8)).block_until_ready()
before, peak, done = anonymous(), [0], threading.Event()
def watch():
    while not done.is_set():
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.002)
watcher = threading.Thread(target=watch)
watcher.start()
gguf = open_gguf(sys.argv[1])
decoder = load_decoder(gguf)
jax.block_until_ready(jax.tree.leaves(nnx.state(decoder)))
done.set()
watcher.join()
planes = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(decoder)))
del decoder
gc.collect()
left = sum(array.nbytes for array in jax.live_arrays())
largest = max(tensor.nbytes for tensor in gguf.tensors.values())
print(json.dumps(dict(extra=peak[0] - before - planes, planes=planes, largest=largest, left=left)))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of one layer with 150 MB of Q8_0: path."""
    D, F, V = 2048, 8192, 32000
    random = np.random.default_rng(0)

    def packed(rows, columns):
        blocks = np.frombuffer(random.bytes(rows * columns // 32 * 34), np.uint8).reshape(rows, -1)
        return "Q8_0", blocks

    norm = ("F32", np.ones(D, np.float32))
    tensors = {
        f"{name}.weight": norm for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm")
    }
    tensors["token_embd.weight"] = packed(V, D)
    shapes = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (D, D))
    shapes |= {"ffn_gate": (F, D), "ffn_up": (F, D), "ffn_down": (D, F)}
    tensors |= {f"blk.0.{name}.weight": packed(*shape) for name, shape in shapes.items()}
    keys = {
        "block_count": 1,
        "context_length": 64,
        "embedding_length": D,
        "feed_forward_length": F,
        "attention.head_count": 16,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    path = tmp_path_factory.mktemp("model") / "large.gguf"
    write_gguf(
        path,
        {"general.architecture": "llama"} | {f"llama.{key}": value for key, value in keys.items()},
        tensors,
    )
    return path


@pytest.mark.usefixtures("optimised")
@pytest.mark.core
def test_loading_needs_little_more_than_what_stays(model):
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, model], stdout=subprocess.PIPE, check=True, text=True
    )
    measured = json.loads(ran.stdout)
    assert measured["planes"] > 140e6 and measured["largest"] == 32000 * formats.get(
        "Q8_0"
    ).row_bytes(2048)
    assert measured["extra"] <= 1.2 * measured["largest"] + 200e6
    assert measured["left"] == 0  # a deleted model leaves nothing
