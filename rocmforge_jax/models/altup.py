"""AltUp: several residual streams, of which a layer computes only one (arXiv:2301.13310).

A layer predicts every stream from all streams and computes only the first one. The difference
between the computed and the predicted first stream then corrects all predictions.
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
        streams: The number of residual streams, A. The layer computes the first one.
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
        """Predicts the streams, float32 [A, B, T, D]: each stream plus a mixture of all streams."""
        (mixing,) = products(self._modalities(layer, x_ABTD[0]), [layer.altup_predict_coef])
        mixing_BTAA = mixing.reshape(*mixing.shape[:2], self.streams, self.streams)
        x_ABTD = x_ABTD.astype(jnp.float32)
        return x_ABTD + jnp.einsum("btij,jbtd->ibtd", mixing_BTAA, x_ABTD, precision="highest")

    def correct(self, layer, predicted_ABTD, computed_BTD):
        """Corrects all predicted streams by the error of the first one, float32 [A, B, T, D]."""
        modalities = self._modalities(layer, computed_BTD)
        (shares_BTA,) = products(modalities, [layer.altup_correct_coef])
        off_BTD = computed_BTD.astype(jnp.float32) - predicted_ABTD[0]
        shares_ABT1 = jnp.moveaxis(1 + shares_BTA, -1, 0)[..., None]
        return predicted_ABTD + shares_ABT1 * off_BTD[None]

    def scaled(self, layer, x_BTD):
        """Multiplies a corrected stream by the learned scale for the per-layer input, float32."""
        scale_D = layer.altup_correct_scale.kernel.get_value().astype(jnp.float32)
        return x_BTD.astype(jnp.float32) * scale_D[None, None]

    def _modalities(self, layer, x_BTD):
        """Computes A numbers per token from which its coefficients are projected, float32."""
        normed = layer.altup_router_norm(x_BTD) * (1 / x_BTD.shape[-1])
        (routed_BTA,) = products(normed, [layer.altup_router], dtype=jnp.float32)
        return jnp.tanh(routed_BTA)


def stream_modules(streams: int, width: int, numerics, rngs) -> Mapping[str, nnx.Module]:
    """Makes the submodules of a decoder that `stacked` and `merged` need.

    Args:
        streams: The number of residual streams, A.
        width: The width of a stream, D.
        numerics: The decoder's numerics.
        rngs: Random numbers for the initial weights; None inside `nn.only_shapes`.
    """
    names = ("altup_proj", "altup_unembd_proj")
    return {
        name: Experts(streams - 1, width, width, numerics=numerics, rngs=rngs) for name in names
    }


def stacked(decoder, x_BTD):
    """Makes all streams from the embeddings, [A, B, T, D]; the first stream is the embeddings."""
    others = jnp.broadcast_to(x_BTD[None], (decoder.altup_proj.kernel.shape[0], *x_BTD.shape))
    made = _as_long_as(x_BTD, _through(others, decoder.altup_proj))
    return jnp.concatenate([x_BTD[None], made], axis=0)


def merged(decoder, x_ABTD):
    """Returns the mean of the first stream and the projected other streams, [B, T, D]."""
    others = _as_long_as(x_ABTD[0], _through(x_ABTD[1:], decoder.altup_unembd_proj))
    total = x_ABTD[0].astype(jnp.float32) + jnp.sum(others.astype(jnp.float32), axis=0)
    return (total * (1 / x_ABTD.shape[0])).astype(x_ABTD.dtype)


def _through(x_ABTD, projections: Experts):
    """Applies a separate projection to each stream."""
    return jnp.moveaxis(through_each(jnp.moveaxis(x_ABTD, 0, 2), projections), 2, 0)


def _as_long_as(target_BTD, x_ABTD):
    """Scales each token's vector to the length of the token's vector in the target stream."""
    target, x = target_BTD.astype(jnp.float32)[None], x_ABTD.astype(jnp.float32)
    length, wanted = (jnp.sqrt(jnp.sum(a * a, axis=-1, keepdims=True)) for a in (x, target))
    return (x * (wanted / length)).astype(x_ABTD.dtype)
