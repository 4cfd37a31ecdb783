"""Models with the shapes of well-known ones and random packed weights, made on the device in seconds: for measuring GPUs."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from mixes import type_of
from synthetic import SHAPES

from pallas_kernels import samples
from rocmforge_jax import formats
from rocmforge_jax.models import Decoder, DecoderConfig
from rocmforge_jax.models.load import tensor_name
from rocmforge_jax.nn import RopeConfig
from rocmforge_jax.quant import QParam, QTensor, groups


def config(shape_name: str) -> DecoderConfig:
    architecture, layers, width, hidden, heads, kv_heads, head, vocabulary, base = SHAPES[shape_name]
    return DecoderConfig(
        layers=layers, width=width, hidden=hidden, heads=heads, kv_heads=kv_heads, head_width=head, vocabulary=vocabulary,
        context_length=32768, norm_epsilon=1e-5, rope=RopeConfig(width=head, base=base, interleaved=architecture == "llama"),
        qkv_bias=architecture.startswith("qwen"), tied=layers < 28,
    )  # fmt: skip


def decoder(shape_name: str, mix: str, dtype=jnp.bfloat16, **settings) -> Decoder:
    """A Decoder of a shape whose matrices have the types of `mix`."""
    made = nnx.eval_shape(lambda: Decoder(config(shape_name), dtype=dtype, rngs=nnx.Rngs(0), **settings))
    keys = iter(jax.random.split(jax.random.key(0), 1000))
    for path, module in list(nnx.iter_modules(made)):
        for attribute, variable in list(vars(module).items()):
            if isinstance(variable, nnx.Variable):
                fmt = formats.get(type_of(tensor_name((*path, attribute)), made.config.layers, made.config.tied, mix))
                setattr(module, attribute, _variable(variable.shape, fmt, attribute == "kernel", next(keys)))
    return made


def _variable(shape, fmt, transposed, key):
    if len(shape) < 2:
        return nnx.Param(jnp.ones(shape, jnp.float32))
    rows, columns = reversed(shape) if transposed else shape
    return QParam(QTensor(_planes(key, fmt, rows, columns), fmt.name, "groups", transposed))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _planes(key, fmt, rows, columns):
    return samples.random_planes(key, groups.packing(fmt), rows, columns // 32)
