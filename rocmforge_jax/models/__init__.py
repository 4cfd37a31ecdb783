"""Decoders: one family as code, its architectures as data."""

from rocmforge_jax.models.architectures import ARCHITECTURES, Architecture, read_config, register
from rocmforge_jax.models.config import DecoderConfig, MoEConfig
from rocmforge_jax.models.decoder import Decoder, param_count
from rocmforge_jax.models.layers import Block
from rocmforge_jax.models.load import default_dtype, load_decoder, tensor_name
from rocmforge_jax.models.plan import MemoryPlan, plan_memory
from rocmforge_jax.models.report import KernelReport, kernel_report

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Block",
    "Decoder",
    "DecoderConfig",
    "KernelReport",
    "MemoryPlan",
    "MoEConfig",
    "default_dtype",
    "kernel_report",
    "load_decoder",
    "param_count",
    "plan_memory",
    "read_config",
    "register",
    "tensor_name",
]
