"""Makes models with well-known shapes and random packed weights, on the device and in seconds."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from mixes import type_of
from synthetic import MIXTURES, ROUTER, SHAPES

from pallas_kernels import samples
from rocmforge_jax import formats
from rocmforge_jax.models import Attention, Decoder, DecoderConfig, Gated, Mixture
from rocmforge_jax.models.load import tensor_name
from rocmforge_jax.nn import RopeConfig, Routing
from rocmforge_jax.quant import QParam, QTensor, word_packed


def config(shape_name: str) -> DecoderConfig:
    architecture, layers, width, hidden, heads, kv_heads, head, vocabulary, base = SHAPES[
        shape_name
    ]
    rope = RopeConfig(width=head, base=base, interleaved=architecture == "llama")
    qk_norm = "head" if architecture == "qwen3moe" else None
    biases = ("attn_q", "attn_k", "attn_v") if architecture == "qwen2" else ()
    feed_forward = Gated(hidden)
    if shape_name in MIXTURES:
        experts, used, units = MIXTURES[shape_name]
        feed_forward = Mixture(experts, Routing(used, "softmax", True), units)
    return DecoderConfig.uniform(
        layers,
        Attention(heads, kv_heads, head, rope, qk_norm=qk_norm),
        feed_forward,
        width=width,
        vocabulary=vocabulary,
        context_length=32768,
        norm_epsilon=1e-5,
        biases=frozenset(biases),
        tied=layers < 28,
        architecture=architecture,
    )


def decoder(shape_name: str, mix: str, dtype=jnp.bfloat16, **settings) -> Decoder:
    """A Decoder of a shape whose matrices have the types of `mix`."""
    made = nnx.eval_shape(
        lambda: Decoder(config(shape_name), dtype=dtype, rngs=nnx.Rngs(0), **settings)
    )
    keys = iter(jax.random.split(jax.random.key(0), 1000))
    for path, module in list(nnx.iter_modules(made)):
        for attribute, variable in list(vars(module).items()):
            if isinstance(variable, nnx.Variable):
                name = tensor_name((*path, attribute))
                if len(variable.shape) < 2 or name.endswith(ROUTER):
                    made_here = nnx.Param(
                        jax.random.normal(next(keys), variable.shape)
                        if name.endswith(ROUTER)
                        else jnp.ones(variable.shape)
                    )
                else:
                    fmt = formats.get(type_of(name, len(made.config.layers), made.config.tied, mix))
                    made_here = _packed(variable.shape, fmt, attribute == "kernel", next(keys))
                setattr(module, attribute, made_here)
    return made


def _packed(shape, fmt, transposed, key):
    *stack, rows, columns = (*shape[:-2], *reversed(shape[-2:])) if transposed else shape
    planes = _planes(key, fmt, math.prod(stack) * rows, columns)
    planes = jax.tree.map(lambda plane: plane.reshape(*stack, rows, *plane.shape[1:]), planes)
    return QParam(QTensor(planes, fmt.name, "groups", transposed))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _planes(key, fmt, rows, columns):
    return samples.random_planes(key, word_packed.packing(fmt), rows, columns // 32)
