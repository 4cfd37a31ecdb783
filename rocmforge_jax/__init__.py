"""rocmforge_jax: GGUF models in JAX.

Weights stay packed on the device; models are Flax NNX modules.

Importing this is light: jax is imported when something that computes is first used.
"""

import importlib

__version__ = "0.1.0"

_WHERE = {
    "load": "language_model",
    "LanguageModel": "language_model",
    "Completion": "language_model",
    "open_gguf": "gguf",
    "GGUFError": "gguf",
    "load_tokenizer": "text",
    "ChatTemplateError": "text",
    "dequantize": "quant",
    "QTensor": "quant",
    "QParam": "quant",
    "validate_matmul_dims": "quant",
    "validate_attention_dims": "nn",
    "SamplingParams": "generate",
    "kernel_report": "models",
}
_SUBPACKAGES = ("formats", "generate", "gguf", "models", "nn", "quant", "text")
__all__ = [*_WHERE, *_SUBPACKAGES]


def __getattr__(name):
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _WHERE:
        return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
