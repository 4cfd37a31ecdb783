"""Makes models with the shapes of well-known models and random packed weights, on the device."""

import dataclasses
import functools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import synthetic
from flax import nnx
from mixes import type_of

from pallas_kernels import samples
from rocmforge_jax import formats
from rocmforge_jax.models import ARCHITECTURES, Decoder, DecoderConfig
from rocmforge_jax.models.claims import tensor_name
from rocmforge_jax.models.keys import KeyReader
from rocmforge_jax.quant import QParam, QTensor, word_packed


def config(shape_name: str) -> DecoderConfig:
    """Returns what a file of this shape gives; large models have a head of their own."""
    written = synthetic.metadata(shape_name, "")
    metadata = {
        key: value.item() if isinstance(value, np.generic) else value
        for key, value in written.items()
    }
    shapes = synthetic.tensor_shapes(shape_name)
    tensors = {name: SimpleNamespace(shape=shape) for name, shape in shapes.items()}
    architecture = metadata["general.architecture"]
    file = SimpleNamespace(
        metadata=metadata, tensors=tensors, architecture=architecture, path=shape_name
    )
    read = ARCHITECTURES[architecture].read(KeyReader(file))
    tied = architecture != "gpt-oss" and len(read.layers) < 28
    if shape_name in synthetic.hybrid_shapes.SHAPES:
        tied = read.tied
    return dataclasses.replace(read, architecture=architecture, tied=tied)


def decoder(shape_name: str, mix: str, dtype=jnp.bfloat16, **settings) -> Decoder:
    """A Decoder of a shape whose matrices have the types of `mix`."""
    made = nnx.eval_shape(
        lambda: Decoder(config(shape_name), dtype=dtype, rngs=nnx.Rngs(0), **settings)
    )
    keys = iter(jax.random.split(jax.random.key(0), 4000))
    for path, module in list(nnx.iter_modules(made)):
        for attribute, variable in list(vars(module).items()):
            if isinstance(variable, nnx.Variable):
                name = tensor_name((*path, attribute))
                if not synthetic.is_packed(name, variable.shape):
                    made_here = nnx.Param(_plain(name, variable.shape, next(keys)))
                else:
                    fmt = formats.get(type_of(name, len(made.config.layers), made.config.tied, mix))
                    made_here = _packed(variable.shape, fmt, attribute == "kernel", next(keys))
                setattr(module, attribute, made_here)
    return made


def _plain(name, shape, key):
    """Makes a tensor that is not packed. Memories of delta nets decay, so nothing overflows."""
    if name.endswith((synthetic.ROUTER, "ssm_conv1d.weight")):
        return jax.random.normal(key, shape)
    return jnp.full(shape, -1.0) if name.endswith("ssm_a") else jnp.ones(shape)


def _packed(shape, fmt, transposed, key):
    *stack, rows, columns = (*shape[:-2], *reversed(shape[-2:])) if transposed else shape
    planes = _planes(key, fmt, math.prod(stack) * rows, columns)
    planes = jax.tree.map(lambda plane: plane.reshape(*stack, rows, *plane.shape[1:]), planes)
    return QParam(_padded(QTensor(planes, fmt.name, "groups", transposed)))


_padded = jax.jit(QTensor.padded)  # as `load_decoder` does on a GPU


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _planes(key, fmt, rows, columns):
    return samples.random_planes(key, word_packed.packing(fmt), rows, columns // 32)
