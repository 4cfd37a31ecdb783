"""Mixers: the parts of a layer that let tokens see one another. Each defines its kind of state."""

from rocmforge_jax.models.mixers.attention import Attention
from rocmforge_jax.models.mixers.convolution import ShortConvolution
from rocmforge_jax.models.mixers.delta_rule import DeltaRule
from rocmforge_jax.models.mixers.latent import LatentAttention
from rocmforge_jax.models.mixers.mamba import Mamba
from rocmforge_jax.models.mixers.mamba2 import Mamba2
from rocmforge_jax.models.mixers.parallel import ParallelMixers
from rocmforge_jax.models.mixers.projection import Projection
from rocmforge_jax.models.mixers.temperature import Temperature

__all__ = [
    "Attention",
    "DeltaRule",
    "LatentAttention",
    "Mamba",
    "Mamba2",
    "ParallelMixers",
    "Projection",
    "ShortConvolution",
    "Temperature",
]
