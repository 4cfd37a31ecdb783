"""Low-rank adapters (LoRA) around linear layers and experts, whose weights may stay packed."""

from rocmforge_jax.adapters.files import load_lora, save_lora
from rocmforge_jax.adapters.merge import merge_lora, remove_lora
from rocmforge_jax.adapters.wrap import lora

__all__ = ["load_lora", "lora", "merge_lora", "remove_lora", "save_lora"]
