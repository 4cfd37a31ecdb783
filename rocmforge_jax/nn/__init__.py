"""Flax NNX building blocks of language models. They know no architecture and no file."""

from rocmforge_jax.nn.attention import (
    attend,
    attend_to_new,
    causal_attention,
    causal_mask,
    dot_product_attention,
    validate_attention_dims,
)
from rocmforge_jax.nn.cache import Cache, LayerCache
from rocmforge_jax.nn.fresh import only_shapes
from rocmforge_jax.nn.linear import Embedding, Linear
from rocmforge_jax.nn.mlp import silu_gate, swiglu, swiglu_mlp
from rocmforge_jax.nn.moe import Experts, ScalarGate, choose_experts, mixture, route
from rocmforge_jax.nn.norm import RMSNorm, rms_norm
from rocmforge_jax.nn.prepared import Prepared, array_of
from rocmforge_jax.nn.products import Product, products
from rocmforge_jax.nn.rope import RopeConfig, apply_rope, rope_table

__all__ = [
    "Cache",
    "Embedding",
    "Experts",
    "LayerCache",
    "Linear",
    "Prepared",
    "Product",
    "RMSNorm",
    "RopeConfig",
    "ScalarGate",
    "apply_rope",
    "array_of",
    "attend",
    "attend_to_new",
    "causal_attention",
    "causal_mask",
    "choose_experts",
    "dot_product_attention",
    "mixture",
    "only_shapes",
    "products",
    "rms_norm",
    "rope_table",
    "route",
    "silu_gate",
    "swiglu",
    "swiglu_mlp",
    "validate_attention_dims",
]
