"""Decoder models: layers described as data, and architectures that read GGUF files."""

from rocmforge_jax.models.architectures import ARCHITECTURES, Architecture, read_config, register
from rocmforge_jax.models.checked_inputs import checked_pooling
from rocmforge_jax.models.claims import tensor_name
from rocmforge_jax.models.config import DecoderConfig, LayerConfig, NextNConfig
from rocmforge_jax.models.decoder import Decoder, param_count
from rocmforge_jax.models.embedding_head import Classifier, EmbeddingHead
from rocmforge_jax.models.feed_forward import Gated, GatedAndMixture, Mixture
from rocmforge_jax.models.layer import Layer
from rocmforge_jax.models.llama_like import llama_like
from rocmforge_jax.models.load import (
    abstract_decoder,
    decoder_of,
    file_problems,
    load_decoder,
)
from rocmforge_jax.models.load_options import LoadOptions, default_dtype
from rocmforge_jax.models.make import Norms
from rocmforge_jax.models.mixers import (
    Attention,
    DeltaRule,
    LatentAttention,
    Mamba,
    Mamba2,
    ParallelMixers,
    Projection,
    ShortConvolution,
    Temperature,
)
from rocmforge_jax.models.nextn import NextN
from rocmforge_jax.models.parts import Tokens
from rocmforge_jax.models.per_layer_input import PerLayerInput
from rocmforge_jax.models.plan import MemoryPlan, plan_memory
from rocmforge_jax.models.report import KernelReport, kernel_report
from rocmforge_jax.models.source import Source

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Attention",
    "Classifier",
    "Decoder",
    "DecoderConfig",
    "DeltaRule",
    "EmbeddingHead",
    "Gated",
    "GatedAndMixture",
    "KernelReport",
    "LatentAttention",
    "Layer",
    "LayerConfig",
    "LoadOptions",
    "Mamba",
    "Mamba2",
    "MemoryPlan",
    "Mixture",
    "NextN",
    "NextNConfig",
    "Norms",
    "ParallelMixers",
    "PerLayerInput",
    "Projection",
    "ShortConvolution",
    "Source",
    "Temperature",
    "Tokens",
    "abstract_decoder",
    "checked_pooling",
    "decoder_of",
    "default_dtype",
    "file_problems",
    "kernel_report",
    "llama_like",
    "load_decoder",
    "param_count",
    "plan_memory",
    "read_config",
    "register",
    "tensor_name",
]
