"""Whole decoders with kernels, in Pallas's interpreter, against the same in plain XLA: what one
kernel gives is what the next one takes.
"""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pallas_kernels import targets
from rocmforge_jax import formats
from rocmforge_jax.models import Attention, Decoder, DecoderConfig, Gated, Mixture
from rocmforge_jax.models.families import POST_NORMS
from rocmforge_jax.nn import RopeConfig, Routing
from rocmforge_jax.quant import QParam, QTensor
from tests.pallas_kernels.conftest import GPUS, lowered_to_triton
from tests.reference_blocks import ggml_blocks, packed

__all__ = ["ggml_blocks", "packed"]

#: Relative error of logits. Float32 sums in another order; activations in 15 bits, a few 1e-5 off
#: in each of ten products.
ERRORS = {"float": 1e-5, "int16": 5e-4}
#: K-quants where the inputs are the 256 of attention and of the hidden layer, else blocks of 32.
TYPES = {"attn_output": "Q4_K", "ffn_down": "Q6_K"}
#: Name -> changes of the attention; the feed-forward; changes of the decoder.
QKV_BIASES = frozenset(("attn_q", "attn_k", "attn_v", "attn_qkv"))
VARIANTS = {
    "llama": ({}, Gated(256), {}),
    "qwen3": (dict(qk_norm="head"), Gated(256), {}),
    "glm4": ({}, Gated(256, fused=True), dict(biases=QKV_BIASES, norms=POST_NORMS)),
    "chatglm": (
        dict(fused_qkv=True),
        Gated(256, fused=True),
        dict(biases=QKV_BIASES, tied=False),
    ),
    "qwen2moe": (
        {},
        Mixture(4, Routing(2, "softmax", False), 64, shared_hidden=32, shared_gate=True),
        dict(biases=QKV_BIASES),
    ),
}
#: Tokens of a prompt, more than the kernel for few rows takes: weights are dequantised for it.
#: Tokens after it.
PROMPT, NEW = 17, 3


@pytest.fixture
def interpreted():
    """Kernels are there, in Pallas's interpreter."""
    with targets.use(targets.INTERPRET) as target:
        yield target


@pytest.fixture(scope="module")
def random_decoder(packed, normal):
    """Makes a decoder of two layers, with four heads for each of two KV heads.

    Every matrix is packed.
    """

    def make(mode, backend="auto", variant="llama"):
        attention, feed_forward, changes = VARIANTS[variant]
        config = DecoderConfig.uniform(
            2,
            Attention(8, 2, 32, RopeConfig(32), **attention),
            feed_forward,
            width=96,
            vocabulary=160,
            context_length=64,
            norm_epsilon=1e-5,
            **changes,
        )
        made = dict(activations=mode, backend=backend)
        decoder = nnx.eval_shape(lambda: Decoder(config, **made, rngs=nnx.Rngs(0)))
        for number, (path, module) in enumerate(list(nnx.iter_modules(decoder))):
            for name, variable in list(vars(module).items()):
                if isinstance(variable, nnx.Variable):
                    setattr(
                        module, name, _variable(packed, normal, path, name, variable.shape, number)
                    )
        return decoder

    return make


def _variable(packed, normal, path, name, shape, seed):
    """Matrices of reference blocks, whose numbers are about 0.4; norms' scales that undo that."""
    if len(shape) == 1:
        size = 1 if "q_norm" in path[-1] or "k_norm" in path[-1] or "post" in path[-1] else 0.3
        return nnx.Param(
            jnp.asarray(normal(*shape, seed=seed) * 0.1 + (size if name == "scale" else 0))
        )
    *lead, rows, inputs = shape if name == "embedding" else (*shape[:-2], shape[-1], shape[-2])
    if path[-1] == "ffn_gate_inp":  # as in files
        return nnx.Param(jnp.asarray(normal(*shape, seed=seed)))
    type_name = TYPES.get(path[-1], "Q4_0")
    row_bytes = packed(type_name, math.prod(lead) * rows, inputs // formats.get(type_name).block)[0]
    # Every matrix of its own.
    row_bytes = np.roll(row_bytes, seed, axis=0).reshape(*lead, rows, -1)
    return QParam(
        QTensor.from_bytes(row_bytes, type_name, layout="groups", transposed=name == "kernel")
    )


def continued(decoder, tokens_BT, new, given=None):
    """Prefill, then a token at a time, the likeliest or those `given` [B, new] -> (logits [B, T +
    new, V], the likeliest ids [B, new]).
    """
    # Without jit around it all, layers share the kernels that are compiled.
    logits, cache = decoder(
        jnp.asarray(tokens_BT), decoder.init_cache(len(tokens_BT), tokens_BT.shape[1] + new)
    )
    every, ids = [logits], [logits[:, -1].argmax(axis=-1)]
    for i in range(new):
        tokens_B = ids[-1] if given is None else given[:, i]
        logits, cache = decoder(tokens_B[:, None].astype(jnp.int32), cache)
        every.append(logits)
        ids.append(logits[:, -1].argmax(axis=-1))
    return np.float64(jnp.concatenate(every, axis=1)), np.stack(ids[:-1], axis=1)


@pytest.mark.parametrize(
    ("variant", "mode", "batch"),
    [
        pytest.param("llama", "int16", 1, marks=pytest.mark.core),
        # The next ones have floats as well.
        pytest.param("llama", "float", 1, marks=pytest.mark.heavy),
        ("llama", "int16", 2),
        ("qwen3", "float", 1),
        ("glm4", "float", 1),
        ("chatglm", "int16", 1),
        ("qwen2moe", "float", 1),
    ],
)
def test_kernels_give_the_logits_of_plain_xla(
    variant, mode, batch, random_decoder, relative, interpreted
):
    """Of a prompt and of each token after it; the likeliest tokens are the same."""
    plain = random_decoder(mode, "xla", variant)
    decoder = random_decoder(mode, variant=variant)
    tokens = np.random.default_rng(0).integers(0, 160, (batch, PROMPT), dtype=np.int32)
    expected, ids = continued(plain, tokens, NEW)
    found, found_ids = continued(decoder, tokens, NEW, given=ids)
    error = relative(found, expected)
    assert 0 < error < ERRORS[mode]
    if mode == "float":
        np.testing.assert_array_equal(found_ids, ids)


@pytest.mark.parametrize("tokens", [1, 17])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_decoder_runs_where_kernels_are_all_there_is(
    variant, tokens, random_decoder, interpreted
):
    """Nothing in it asks for a kernel that is not there."""
    decoder = random_decoder("int16", "pallas", variant)
    logits, _ = jax.eval_shape(
        decoder, jnp.zeros((1, tokens), jnp.int32), decoder.init_cache(1, 32)
    )
    assert logits.shape == (1, tokens, 160)


@pytest.mark.parametrize("target", GPUS, ids=str)
def test_a_step_copies_no_expert(target, random_decoder, flat):
    """No slice of a stack's planes is in the program of one token.

    Without kernels there is one, so it would be found.
    """

    def slices_of_stacks(backend):
        leaves, merge = flat(random_decoder("int16", backend, "qwen2moe"))

        def step(leaves, tokens, cache):
            return merge(leaves)(tokens, cache, last_only=True)

        with targets.use(target):
            text = lowered_to_triton(
                target, step, leaves, jnp.zeros((1, 1), jnp.int32), merge(leaves).init_cache(1, 16)
            )
        sliced = re.findall(r"dynamic_slice .*: \(tensor<([^>]*)>", text)
        return {
            shape for shape in sliced if re.fullmatch(r"4x\d+x\d+x\d+xui32|4x\d+x\d+xf16", shape)
        }

    assert not slices_of_stacks("auto")
    assert slices_of_stacks("xla") == {"4x64x4x3xui32", "4x64x3xf16", "4x96x4x2xui32", "4x96x2xf16"}
