"""Packed matrices with known values, and what the suites share about types and layouts."""

import numpy as np
import pytest

from pallas_kernels import targets
from rocmforge_jax import formats
from rocmforge_jax.quant import QTensor, word_packed
from tests.reference_blocks import ggml_blocks, packed

__all__ = ["ggml_blocks", "interpreted", "packed"]

QUANTIZED = [name for name, fmt in formats.FORMATS.items() if fmt.is_quantized]
IN_GROUPS = [name for name in QUANTIZED if word_packed.can_hold(formats.get(name))]
LAYOUTS = ["rows", "columns", "groups"]


def layouts_of(name):
    """The layouts that hold a type."""
    return LAYOUTS if name in IN_GROUPS else ["rows", "columns"]


def in_every_layout(names, core):
    """Parameters (name, layout), those of the types in `core` marked so."""

    def marks(name):
        return pytest.mark.core if name in core else ()

    return [
        pytest.param(name, layout, marks=marks(name))
        for name in names
        for layout in layouts_of(name)
    ]


@pytest.fixture
def interpreted():
    """Kernels are there, in Pallas's interpreter."""
    with targets.use(targets.INTERPRET) as target:
        yield target


@pytest.fixture
def made(packed):
    """(type, outputs, blocks) -> (QTensor (in, out) in groups, its values in float64)."""

    def make(name, outputs, blocks):
        rows, values = packed(name, outputs, blocks)
        return QTensor.from_bytes(rows, name, layout="groups", transposed=True), np.float64(
            values.T
        )

    return make
