"""Flax NNX building blocks of language models. They know no architecture and no file."""

from rocmforge_jax.nn.attention import attend, causal_mask, dot_product_attention, validate_attention_dims
from rocmforge_jax.nn.cache import Cache, LayerCache
from rocmforge_jax.nn.linear import Embedding, Linear
from rocmforge_jax.nn.mlp import silu_gate, swiglu, swiglu_mlp
from rocmforge_jax.nn.moe import Experts, ScalarGate, mixture, route
from rocmforge_jax.nn.norm import RMSNorm, rms_norm
from rocmforge_jax.nn.rope import RopeConfig, apply_rope, rope_table

__all__ = [
    "Cache",
    "Embedding",
    "Experts",
    "LayerCache",
    "Linear",
    "RMSNorm",
    "RopeConfig",
    "ScalarGate",
    "apply_rope",
    "attend",
    "causal_mask",
    "dot_product_attention",
    "mixture",
    "rms_norm",
    "rope_table",
    "route",
    "silu_gate",
    "swiglu",
    "swiglu_mlp",
    "validate_attention_dims",
]
