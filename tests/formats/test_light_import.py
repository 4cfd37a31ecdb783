"""Declarations and quantising import neither jax nor gguf; only values on the device do."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.core

PROGRAM = """
import sys
import numpy as np
from rocmforge_jax import formats
formats.get("iq2_xxs").row_bytes(512)
formats.quantize(np.ones(32, np.float32), "q4_1")
print(sorted({"jax", "jaxlib", "gguf", "flax"} & set(sys.modules)))
formats.dequantize(formats.quantize(np.ones(32, np.float32), "q4_1"), "q4_1")
print("jax" in sys.modules, "gguf" in sys.modules)
"""


def test_formats_import_neither_jax_nor_gguf_until_they_are_needed():
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines() == ["[]", "True False"]


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    from rocmforge_jax import formats

    with pytest.raises(
        AttributeError, match="module 'rocmforge_jax.formats' has no attribute 'requantize'"
    ):
        formats.requantize  # noqa: B018
