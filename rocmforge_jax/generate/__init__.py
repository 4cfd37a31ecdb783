"""Generates tokens and embeddings from token ids.

Weights, caches and sampling stay on the device. `Engine` generates tokens; `Embedder` computes
embedding vectors.
"""

from rocmforge_jax.generate.embedder import Embedder
from rocmforge_jax.generate.engine import Engine
from rocmforge_jax.generate.generation import Generation
from rocmforge_jax.generate.options import AnswerOptions, GenerateOptions, SamplingOptions
from rocmforge_jax.generate.params import SamplingParams
from rocmforge_jax.generate.perplexity import Perplexity, perplexity
from rocmforge_jax.generate.prefix_cache import PrefixCache
from rocmforge_jax.generate.processor import LogitsProcessor
from rocmforge_jax.generate.prompt_cache import PromptCache
from rocmforge_jax.generate.sampling import Sampler, sample
from rocmforge_jax.generate.scheduler import Scheduler
from rocmforge_jax.generate.sequence import Generated, Sequence, check_context_length
from rocmforge_jax.generate.snapshots import Snapshots
from rocmforge_jax.generate.steps import Slots, Steps

__all__ = [
    "AnswerOptions",
    "Embedder",
    "Engine",
    "GenerateOptions",
    "Generated",
    "Generation",
    "LogitsProcessor",
    "Perplexity",
    "PrefixCache",
    "PromptCache",
    "Sampler",
    "SamplingOptions",
    "SamplingParams",
    "Scheduler",
    "Sequence",
    "Slots",
    "Snapshots",
    "Steps",
    "check_context_length",
    "perplexity",
    "sample",
]
