"""Rows are padded for GPUs, and the estimate before loading counts the padding."""

import jax
import numpy as np
import pytest
from flax import nnx

from rocmforge_jax import formats
from rocmforge_jax.models import load_decoder, place

pytestmark = pytest.mark.core

#: 45 groups of 32, which become 48.
HIDDEN = 45 * 32


@pytest.fixture
def file(small_file):
    """A file with a packed matrix whose rows are padded on GPUs, and one whose rows are not."""
    random = np.random.default_rng(0)

    def packed(name, rows, columns):
        return name, formats.quantize(random.normal(size=(rows, columns)).astype(np.float32), name)

    dense = "F32", random.normal(size=(HIDDEN, 32)).astype(np.float32)
    return small_file(
        keys={"llama.feed_forward_length": HIDDEN},
        tensors={
            "blk.0.ffn_gate.weight": dense,
            "blk.0.ffn_up.weight": packed("Q8_0", HIDDEN, 32),
            "blk.0.ffn_down.weight": packed("Q5_1", 32, HIDDEN),
        },
    )


@pytest.mark.parametrize(("platform", "padding"), [("rocm", 3), ("cpu", 0)])
def test_the_estimate_is_what_the_arrays_take(platform, padding, file, monkeypatch):
    monkeypatch.setattr(place, "platform_of", lambda device=None: platform)
    estimates = []
    decoder = load_decoder(
        file, layout="groups", before_reading=lambda config, nbytes: estimates.append(nbytes)
    )
    assert decoder.blk[0].ffn_down.kernel.get_value().padding == padding
    assert estimates == [sum(array.nbytes for array in jax.tree.leaves(nnx.state(decoder)))]
