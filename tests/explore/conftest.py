"""Small decoders of random weights, and NumPy's float64 softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rocmforge_jax.models import Decoder, DecoderConfig, Gated
from rocmforge_jax.models.config import LayerConfig
from rocmforge_jax.models.make import Norms

WIDTH, VOCABULARY = 24, 61


@pytest.fixture(scope="session")
def decoder_of():
    """decoder_of(*mixers, **options): a decoder whose layers have these mixers."""

    def decoder_of(*mixers, **options):
        layers = tuple(LayerConfig(mixer, Gated(40), Norms(1e-5)) for mixer in mixers)
        sizes = dict(width=WIDTH, vocabulary=VOCABULARY, context_length=64, norm_epsilon=1e-5)
        config = DecoderConfig(layers, **sizes | dict(tied=False) | options)
        return Decoder(config, rngs=nnx.Rngs(1), backend="xla")

    return decoder_of


@pytest.fixture(scope="session")
def streams():
    """streams(decoder, ids): the residual stream after each layer, float64 [layers, T, D]."""

    def streams(decoder, ids):
        graphdef, state = nnx.split(decoder)

        @jax.jit
        def captured(state, tokens):
            model = nnx.merge(graphdef, state)
            kind = nnx.Intermediate
            _, seen = nnx.capture(model, kind, method_outputs=kind)(tokens)
            blocks = [seen["blk"][i]["__call__"] for i in range(len(model.config.layers))]
            return [block.get_value()[0][0][0] for block in blocks]

        return np.array(captured(state, jnp.asarray(ids)[None]), np.float64)

    return streams


@pytest.fixture(scope="session")
def softmax():
    """softmax(logits): over the last axis, in float64."""

    def softmax(logits):
        logits = np.asarray(logits, np.float64)
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return weights / weights.sum(axis=-1, keepdims=True)

    return softmax
