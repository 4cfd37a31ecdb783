"""rocmforge_jax: GGUF models in JAX.

Weights stay packed on the device; models are Flax NNX modules.

Importing this is light: jax is imported when something that computes is first used.
"""

import importlib

TYPE_CHECKING = False  # `typing` takes 7 ms to import

if TYPE_CHECKING:  # what `__getattr__` imports, for type checkers and editors
    from rocmforge_jax import explore as explore
    from rocmforge_jax.adapters import load_lora as load_lora
    from rocmforge_jax.adapters import lora as lora
    from rocmforge_jax.adapters import merge_lora as merge_lora
    from rocmforge_jax.adapters import remove_lora as remove_lora
    from rocmforge_jax.adapters import save_lora as save_lora
    from rocmforge_jax.compilation_cache import enable_compilation_cache as enable_compilation_cache
    from rocmforge_jax.completion import Completion as Completion
    from rocmforge_jax.completion import Piece as Piece
    from rocmforge_jax.export import save as save
    from rocmforge_jax.generate import LogitsProcessor as LogitsProcessor
    from rocmforge_jax.generate import PromptCache as PromptCache
    from rocmforge_jax.generate import SamplingParams as SamplingParams
    from rocmforge_jax.gguf import GGUFError as GGUFError
    from rocmforge_jax.gguf import open_gguf as open_gguf
    from rocmforge_jax.language_model import LanguageModel as LanguageModel
    from rocmforge_jax.loading import load as load
    from rocmforge_jax.loading import load_abstract as load_abstract
    from rocmforge_jax.models import kernel_report as kernel_report
    from rocmforge_jax.nn import validate_attention_dims as validate_attention_dims
    from rocmforge_jax.programs import export_program as export_program
    from rocmforge_jax.quant import QParam as QParam
    from rocmforge_jax.quant import QTensor as QTensor
    from rocmforge_jax.quant import dequantize as dequantize
    from rocmforge_jax.quant import quantize as quantize
    from rocmforge_jax.quant import validate_matmul_dims as validate_matmul_dims
    from rocmforge_jax.text import ChatTemplateError as ChatTemplateError
    from rocmforge_jax.text import load_tokenizer as load_tokenizer

__version__ = "0.1.0"

_WHERE = {
    "load": "loading",
    "load_abstract": "loading",
    "LanguageModel": "language_model",
    "save": "export",
    "Completion": "completion",
    "Piece": "completion",
    "open_gguf": "gguf",
    "GGUFError": "gguf",
    "load_tokenizer": "text",
    "ChatTemplateError": "text",
    "dequantize": "quant",
    "quantize": "quant",
    "QTensor": "quant",
    "QParam": "quant",
    "validate_matmul_dims": "quant",
    "validate_attention_dims": "nn",
    "SamplingParams": "generate",
    "LogitsProcessor": "generate",
    "PromptCache": "generate",
    "enable_compilation_cache": "compilation_cache",
    "kernel_report": "models",
    "export_program": "programs",
    "lora": "adapters",
    "merge_lora": "adapters",
    "remove_lora": "adapters",
    "save_lora": "adapters",
    "load_lora": "adapters",
}
_SUBPACKAGES = (
    "adapters",
    "explore",
    "export",
    "formats",
    "generate",
    "gguf",
    "models",
    "nn",
    "quant",
    "text",
)
__all__ = [*_WHERE, *_SUBPACKAGES]


def __getattr__(name):
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _WHERE:
        return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
