"""AltUp: several residual streams, of which a layer computes one (arXiv:2301.13310).

A layer predicts all streams from one another, computes the first one, and corrects the others by
how far the prediction of the first one was off.
"""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from flax import nnx

from rocmforge_jax.models.make import Make
from rocmforge_jax.nn import Experts, Vector, products, through_each


@dataclasses.dataclass(frozen=True)
class AltUp:
    """Predicts and corrects the residual streams of a layer.

    Attributes:
        streams: How many there are, A. The layer computes the first one.
    """

    streams: int

    def __post_init__(self):
        if self.streams < 2:
            raise ValueError(f"AltUp needs at least 2 residual streams, got {self.streams}")

    def modules(self, make: Make) -> Mapping[str, nnx.Module]:
        """Makes the router and the matrices of coefficients."""
        A = self.streams
        return {
            "altup_router": make.linear("altup_router", make.width, A),
            "altup_router_norm": make.norm("altup_router_norm", make.width),
            "altup_predict_coef": make.linear("altup_predict_coef", A, A * A),
            "altup_correct_coef": make.linear("altup_correct_coef", A, A),
            "altup_correct_scale": Vector(make.width, initial=1),
        }

    def predict(self, layer, x_ABTD):
        """Predicts the streams, float32: each is itself and a mixture of all."""
        (mixing,) = products(self._modalities(layer, x_ABTD[0]), [layer.altup_predict_coef])
        mixing_BTAA = mixing.reshape(*mixing.shape[:2], self.streams, self.streams)
        x_ABTD = x_ABTD.astype(jnp.float32)
        return x_ABTD + jnp.einsum("btij,jbtd->ibtd", mixing_BTAA, x_ABTD, precision="highest")

    def correct(self, layer, predicted_ABTD, computed_BTD):
        """Corrects predicted streams by what the layer computed, float32."""
        modalities = self._modalities(layer, computed_BTD)
        (shares_BTA,) = products(modalities, [layer.altup_correct_coef])
        off_BTD = computed_BTD.astype(jnp.float32) - predicted_ABTD[0]
        shares_ABT1 = jnp.moveaxis(1 + shares_BTA, -1, 0)[..., None]
        return predicted_ABTD + shares_ABT1 * off_BTD[None]

    def scaled(self, layer, x_BTD):
        """Multiplies a corrected stream by the scale with which the layer's own input reads it."""
        scale_D = layer.altup_correct_scale.kernel.get_value().astype(jnp.float32)
        return x_BTD.astype(jnp.float32) * scale_D[None, None]

    def _modalities(self, layer, x_BTD):
        """Computes the A numbers that all coefficients of a token are made of, float32."""
        normed = layer.altup_router_norm(x_BTD) * (1 / x_BTD.shape[-1])
        (routed_BTA,) = products(normed, [layer.altup_router], dtype=jnp.float32)
        return jnp.tanh(routed_BTA)


def stream_modules(streams: int, width: int, numerics, rngs) -> Mapping[str, nnx.Module]:
    """Makes the submodules of a decoder that `stacked` and `merged` compute with.

    Args:
        streams: A.
        width: Of a stream, D.
        numerics: How the decoder computes.
        rngs: Draw fresh weights; None inside `nn.only_shapes`.
    """
    names = ("altup_proj", "altup_unembd_proj")
    return {
        name: Experts(streams - 1, width, width, numerics=numerics, rngs=rngs) for name in names
    }


def stacked(decoder, x_BTD):
    """Makes all streams of the embeddings, [A, B, T, D]; the first one is the embeddings."""
    others = jnp.broadcast_to(x_BTD[None], (decoder.altup_proj.kernel.shape[0], *x_BTD.shape))
    made = _as_long_as(x_BTD, _through(others, decoder.altup_proj))
    return jnp.concatenate([x_BTD[None], made], axis=0)


def merged(decoder, x_ABTD):
    """Returns the mean of the first stream and the projected others, [B, T, D]."""
    others = _as_long_as(x_ABTD[0], _through(x_ABTD[1:], decoder.altup_unembd_proj))
    total = x_ABTD[0].astype(jnp.float32) + jnp.sum(others.astype(jnp.float32), axis=0)
    return (total * (1 / x_ABTD.shape[0])).astype(x_ABTD.dtype)


def _through(x_ABTD, projections: Experts):
    """Maps each stream through a projection of its own."""
    return jnp.moveaxis(through_each(jnp.moveaxis(x_ABTD, 0, 2), projections), 2, 0)


def _as_long_as(target_BTD, x_ABTD):
    """Scales tokens of streams to the length of those of another stream."""
    target, x = target_BTD.astype(jnp.float32)[None], x_ABTD.astype(jnp.float32)
    length, wanted = (jnp.sqrt(jnp.sum(a * a, axis=-1, keepdims=True)) for a in (x, target))
    return (x * (wanted / length)).astype(x_ABTD.dtype)
