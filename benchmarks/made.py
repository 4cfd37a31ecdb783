"""Models with the shapes of well-known ones and random packed weights, made on the device in seconds: for measuring GPUs."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from synthetic import SHAPES

from pallas_kernels import samples
from rocmforge_jax import formats
from rocmforge_jax.models import Decoder, DecoderConfig
from rocmforge_jax.nn import RopeConfig
from rocmforge_jax.quant import QParam, QTensor, groups

#: The mixes of types that files are known by; any other name is a type for all matrices.
MIXES = {"Q4_K_M": "Q4_K"}


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
                fmt = formats.get(type_of(path, made.config.layers, mix))
                setattr(module, attribute, _variable(variable.shape, fmt, attribute == "kernel", next(keys)))
    return made


def type_of(path: tuple, layers: int, mix: str) -> str:
    """The type of the matrix of a module, as llama.cpp's quantize chooses it."""
    name = path[-1]
    if mix not in MIXES:
        return mix
    if name == "output":
        return "Q6_K"
    more = name in ("attn_v", "ffn_down") and _more_bits(path[1], layers)
    return "Q6_K" if more else MIXES[mix]


def _more_bits(layer: int, layers: int) -> bool:
    """The layers whose attn_v and ffn_down get more bits: the first and last eighth and every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _variable(shape, fmt, transposed, key):
    if len(shape) < 2:
        return nnx.Param(jnp.ones(shape, jnp.float32))
    rows, columns = reversed(shape) if transposed else shape
    return QParam(QTensor(_planes(key, fmt, rows, columns), fmt.name, "groups", transposed))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _planes(key, fmt, rows, columns):
    return samples.random_planes(key, groups.packing(fmt), rows, columns // 32)
