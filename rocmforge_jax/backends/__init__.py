"""Backends: which one computes an operation, for what reason, and whether it works here."""

from rocmforge_jax.backends.choice import (
    BackendError,
    Choice,
    Decision,
    Operation,
    WrongDevice,
    choose,
    record,
    recording,
)
from rocmforge_jax.backends.gradient import differentiable
from rocmforge_jax.backends.linear import linear
from rocmforge_jax.backends.numerics import ACTIVATION_MODES, DEFAULT, Numerics, compute_dtype
from rocmforge_jax.settings import BACKENDS

__all__ = [
    "ACTIVATION_MODES",
    "BACKENDS",
    "BackendError",
    "DEFAULT",
    "Choice",
    "Decision",
    "Numerics",
    "Operation",
    "WrongDevice",
    "choose",
    "compute_dtype",
    "differentiable",
    "linear",
    "record",
    "recording",
]
