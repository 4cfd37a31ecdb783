"""Generation: sampling on the device, and the engine that turns token ids into more token ids."""

from rocmforge_jax.generate.engine import Engine, Generated
from rocmforge_jax.generate.perplexity import Perplexity, perplexity
from rocmforge_jax.generate.sampling import Sampler, SamplingParams, sample

__all__ = ["Engine", "Generated", "Perplexity", "Sampler", "SamplingParams", "perplexity", "sample"]
