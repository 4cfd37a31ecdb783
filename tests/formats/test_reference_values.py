"""Every type against ggml: the values of its C code for blocks of its own quantiser and for random blocks, to the bit."""

import json

import jax
import numpy as np
import pytest

from rocmforge_jax import formats

pytestmark = pytest.mark.core

TYPES = (
    "f16 bf16 q4_0 q4_1 q5_0 q5_1 q8_0 q2_K q3_K q4_K q5_K q6_K iq1_s iq1_m iq2_xxs iq2_xs iq2_s iq3_xxs iq3_s iq4_nl iq4_xs "
    "tq1_0 tq2_0 mxfp4 nvfp4 q1_0 q2_0"
).split()


@pytest.mark.parametrize("name", TYPES)
def test_values_equal_ggml_to_the_bit(reference, name):
    declared, stated = formats.get(name), json.loads((reference / "dequant" / "index.json").read_text())[name]
    assert (declared.ggml_id, declared.block, declared.block_bytes) == (stated["ggml_type"], stated["block"], stated["bytes"])
    decode = jax.jit(lambda blocks: jax.vmap(lambda fields: declared.values(**fields))(declared.split(blocks)))
    with np.load(reference / "dequant" / f"{name}.npz") as arrays:
        for kind in ("quantized", "random"):
            if f"{kind}_bytes" not in arrays:
                continue
            blocks = arrays[f"{kind}_bytes"].reshape(-1, declared.block_bytes)
            values = np.asarray(decode(blocks)).astype(np.float32).reshape(arrays[f"{kind}_values"].shape)
            np.testing.assert_array_equal(values.view(np.uint32), arrays[f"{kind}_values"].view(np.uint32), err_msg=kind)
