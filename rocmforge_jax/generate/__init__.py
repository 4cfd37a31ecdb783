"""Generation: sampling on the device, and the engine that turns token ids into more token ids."""

from rocmforge_jax.generate.engine import Engine, Generated
from rocmforge_jax.generate.sampling import Sampler, SamplingParams, sample

__all__ = ["Engine", "Generated", "Sampler", "SamplingParams", "sample"]
