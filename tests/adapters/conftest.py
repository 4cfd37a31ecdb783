"""Small decoders of random packed weights, and adapters that change something."""

import jax
import numpy as np
import pytest
from flax import nnx

from rocmforge_jax import formats
from rocmforge_jax.adapters.wrap import adapters
from rocmforge_jax.models import Attention, Decoder, DecoderConfig, Gated
from rocmforge_jax.nn import Linear, RopeConfig
from rocmforge_jax.quant import QParam, QTensor

LAYERS, WIDTH = 3, 64


def pack(kernel, type_name):
    rows = np.ascontiguousarray(np.asarray(kernel.get_value()).T)
    packed = formats.quantize(rows, type_name)
    return QParam(QTensor.from_bytes(packed, type_name, transposed=True))


@pytest.fixture
def decoder():
    """decoder(type_name, **config): three layers whose linear layers are packed, or dense (None).

    Output is a tied embedding.
    """

    def make(type_name="Q5_1", attention=(), gated=(), **config):
        options = dict(vocabulary=45, context_length=64, norm_epsilon=1e-5, architecture="llama")
        config = DecoderConfig.uniform(
            LAYERS,
            Attention(4, 2, 16, RopeConfig(16), **dict(attention)),
            Gated(96, **dict(gated)),
            width=WIDTH,
            **(options | config),
        )
        made = Decoder(config, rngs=nnx.Rngs(3))
        for _, module in nnx.iter_modules(made):
            if type(module) is Linear and type_name is not None:
                module.kernel = pack(module.kernel, type_name)
        return made

    return make


@pytest.fixture
def shaken():
    """shaken(model): the model, with random numbers in the second matrix of each adapter."""

    def shake(model):
        for i, layer in enumerate(adapters(model).values()):
            drawn = jax.random.normal(jax.random.key(i), layer.lora_b.shape)
            layer.lora_b.set_value((0.3 * drawn).astype(layer.lora_b.dtype))
        return model

    return shake
