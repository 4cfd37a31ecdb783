"""Flax NNX building blocks of language models, independent of architectures and file formats."""

from pallas_kernels.activation_functions import GELU, RELU2, SILU, ActivationFunction, swiglu_oai
from pallas_kernels.attention import AttentionRule
from pallas_kernels.delta_rule.operands import DeltaHeads
from pallas_kernels.router import Routing
from pallas_kernels.selective_scan.operands import ScanHeads
from rocmforge_jax.nn.attention import (
    attend,
    attend_to_new,
    cached_attention,
    causal_mask,
    dot_product_attention,
)
from rocmforge_jax.nn.convolution import CausalConvolution, ConvState, causal_convolution
from rocmforge_jax.nn.delta_net import DeltaNetSpec, delta_net
from rocmforge_jax.nn.delta_rule import delta_rule
from rocmforge_jax.nn.diagonal_scan import diagonal_scan
from rocmforge_jax.nn.dims import validate_attention_dims
from rocmforge_jax.nn.fresh import only_shapes
from rocmforge_jax.nn.kv_state import KVState
from rocmforge_jax.nn.latent import LatentState, attend_to_latents
from rocmforge_jax.nn.linear import Embedding, Experts, Linear
from rocmforge_jax.nn.lora import LoRAExperts, LoRALinear
from rocmforge_jax.nn.memory_state import MemoryState
from rocmforge_jax.nn.mlp import gated, swiglu, swiglu_mlp
from rocmforge_jax.nn.moe import ScalarGate, choose_experts, mixture, route
from rocmforge_jax.nn.norm import (
    BiasedRMSNorm,
    GroupedRMSNorm,
    LayerNorm,
    RMSNorm,
    l2_norm,
    layer_norm,
    rms_norm,
    scaled_norm,
)
from rocmforge_jax.nn.parallel_state import ParallelState
from rocmforge_jax.nn.pooling import POOLINGS, pool
from rocmforge_jax.nn.products import Activated, Gate, TiedHead, products
from rocmforge_jax.nn.quantized_input import QuantizedInput, array_of
from rocmforge_jax.nn.rope import (
    RopeConfig,
    Yarn,
    apply_rope,
    attention_temperature,
    longrope_factors,
    rope_table,
    yarn_magnitude,
)
from rocmforge_jax.nn.shared_trace import shared_trace
from rocmforge_jax.nn.ssm import selective_scan
from rocmforge_jax.nn.state import Cache, NoState, State
from rocmforge_jax.nn.state_space import StateSpaceSpec, state_space
from rocmforge_jax.nn.through_each import through_each
from rocmforge_jax.nn.vector import Bias, Vector
from rocmforge_jax.nn.visible import Visible
from rocmforge_jax.nn.xielu import XIELU

__all__ = [
    "Activated",
    "ActivationFunction",
    "AttentionRule",
    "Bias",
    "Cache",
    "CausalConvolution",
    "ConvState",
    "DeltaHeads",
    "DeltaNetSpec",
    "Embedding",
    "Experts",
    "GELU",
    "Gate",
    "BiasedRMSNorm",
    "GroupedRMSNorm",
    "KVState",
    "LatentState",
    "LayerNorm",
    "Linear",
    "LoRAExperts",
    "LoRALinear",
    "MemoryState",
    "NoState",
    "POOLINGS",
    "ParallelState",
    "QuantizedInput",
    "RELU2",
    "RMSNorm",
    "RopeConfig",
    "Routing",
    "SILU",
    "ScalarGate",
    "ScanHeads",
    "State",
    "StateSpaceSpec",
    "TiedHead",
    "Vector",
    "Visible",
    "XIELU",
    "Yarn",
    "apply_rope",
    "array_of",
    "attend",
    "attend_to_latents",
    "attend_to_new",
    "attention_temperature",
    "cached_attention",
    "causal_convolution",
    "causal_mask",
    "choose_experts",
    "delta_net",
    "delta_rule",
    "diagonal_scan",
    "dot_product_attention",
    "l2_norm",
    "layer_norm",
    "longrope_factors",
    "gated",
    "mixture",
    "only_shapes",
    "pool",
    "products",
    "rms_norm",
    "scaled_norm",
    "rope_table",
    "route",
    "selective_scan",
    "shared_trace",
    "state_space",
    "swiglu",
    "swiglu_mlp",
    "swiglu_oai",
    "through_each",
    "validate_attention_dims",
    "yarn_magnitude",
]
