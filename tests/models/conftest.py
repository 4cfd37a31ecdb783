"""Reference models, each loaded once, and small files that may be wrong in any way."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rocmforge_jax.gguf import open_gguf, write_gguf
from rocmforge_jax.models import load_decoder

#: A file of one layer: width 32, 4 heads of 8, 2 KV heads, 64 hidden units, 48 tokens.
SMALL_KEYS = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.context_length": 128,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}
SMALL_SHAPES = {
    "token_embd.weight": (48, 32),
    "blk.0.attn_norm.weight": (32,),
    "blk.0.attn_q.weight": (32, 32),
    "blk.0.attn_k.weight": (16, 32),
    "blk.0.attn_v.weight": (16, 32),
    "blk.0.attn_output.weight": (32, 32),
    "blk.0.ffn_norm.weight": (32,),
    "blk.0.ffn_gate.weight": (64, 32),
    "blk.0.ffn_up.weight": (64, 32),
    "blk.0.ffn_down.weight": (32, 64),
    "output_norm.weight": (32,),
}


@pytest.fixture(scope="session")
def index(reference):
    """ids: the prompt of all models; rows: the positions whose logits are stored; files."""
    return json.loads((reference / "models" / "index.json").read_text())


@pytest.fixture(scope="session")
def load(reference):
    """load(name, dtype=float32): the decoder of a reference file."""

    @functools.cache
    def load(name, dtype=jnp.float32):
        return load_decoder(open_gguf(reference / "models" / f"{name}.gguf"), dtype=dtype)

    return load


@pytest.fixture(scope="session")
def flat():
    """flat(decoder): its arrays, and a function from them to the decoder.

    Steps are jitted on the arrays alone.
    """

    def flat(decoder):
        graphdef, state = nnx.split(decoder)
        leaves, treedef = jax.tree.flatten(state)
        return leaves, lambda leaves: nnx.merge(graphdef, jax.tree.unflatten(treedef, leaves))

    return flat


@pytest.fixture(scope="session")
def logits(flat):
    """logits(decoder, tokens_BT): those of one causal pass, [B, T, V] as float64."""

    def logits(decoder, tokens_BT):
        leaves, merge = flat(decoder)
        return np.asarray(
            jax.jit(lambda leaves, tokens: merge(leaves)(tokens)[0])(
                leaves, jnp.asarray(tokens_BT)
            ),
            np.float64,
        )

    return logits


@pytest.fixture(scope="session")
def relative():
    """relative(got, expected): the L2 norm of the difference over that of what is expected."""
    return lambda got, expected: (
        np.linalg.norm(np.asarray(got, np.float64) - expected)
        / np.linalg.norm(np.asarray(expected, np.float64))
    )


@pytest.fixture
def small_file(tmp_path):
    """small_file(keys, tensors): a file of random weights with these keys and tensors changed, None
    leaves one out.
    """

    def small_file(keys=(), tensors=(), name="small.gguf"):
        random = np.random.default_rng(0)
        written = {
            name: ("F32", random.normal(0, 0.2, shape).astype(np.float32))
            for name, shape in SMALL_SHAPES.items()
        }

        def keep(items):
            return {key: value for key, value in items.items() if value is not None}

        write_gguf(tmp_path / name, keep(SMALL_KEYS | dict(keys)), keep(written | dict(tensors)))
        return open_gguf(tmp_path / name)

    return small_file
