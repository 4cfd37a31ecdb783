"""Products with AMX equal those with AVX-512 VNNI to the bit."""

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.activation_functions import SILU
from pallas_kernels.qmatmul import Product, Weight
from rocmforge_jax.cpp import library as cpp_library
from rocmforge_jax.cpp import products
from tests.conftest import ROOT
from tests.cpp import without_tiles
from tests.cpp.conftest import NEEDS_CPP
from tests.cpp.test_products import drawn, made
from tests.pallas_kernels.conftest import PACKED_TYPES

pytestmark = NEEDS_CPP


@pytest.fixture
def both(library):
    """A function that computes products with AMX and with AVX-512 VNNI."""
    path, fastest = library
    if "AMX" not in cpp_library.instructions(path):
        pytest.skip("this processor has no AMX, or the compiler does not know it")

    def compute(*args, **kwargs):
        results = []
        for name in ("AMX", "AVX-512 VNNI"):
            cpp_library.use(path, name)
            results.append([np.asarray(y) for y in products.multiply(*args, **kwargs)])
        return results

    yield compute
    cpp_library.use(path, fastest)


def assert_equal(results):
    for amx, vnni in zip(*results):
        assert np.isfinite(vnni).all() and np.ptp(vnni) > 0
        np.testing.assert_array_equal(amx, vnni)


def test_amx_is_the_fastest(both, library):
    assert library[1] == "AMX"


@pytest.mark.parametrize("mode", products.MODES)
@pytest.mark.parametrize("name", PACKED_TYPES)
def test_every_packing(name, mode, both):
    """Rows, groups and activations that fill no tile, no panel and no slab."""
    for rows, inputs, count in [(37, 1280, 9), (70, 5376, 16), (131, 768, 19), (3, 256, 520)]:
        x = jnp.asarray(drawn(1, count, inputs))
        assert_equal(both(x, [Product((made(name, rows, inputs)[0],))], mode=mode))


@pytest.mark.parametrize("mode", products.MODES)
def test_several_products_with_norm_and_gate(mode, both):
    """Weights with one and with two scales per group share the activations of a call."""
    gate, up, other = (made(name, 70, 512, i)[0] for i, name in enumerate(("Q4_K", "Q6_K", "Q8_0")))
    x, norm = jnp.asarray(drawn(2, 43, 512)), jnp.asarray(drawn(3, 512))
    wanted = [Product((gate, up), activation=SILU), Product((other,))]
    assert_equal(both(x, wanted, mode=mode, norm=norm, epsilon=1e-5))


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "MXFP4"])
def test_experts(name, both):
    """Experts of one pair, of a ragged tile and of many tiles."""
    stack = [made(name, 70, 512, e)[0] for e in range(3)]
    planes = {key: jnp.stack([w.planes[key] for w in stack]) for key in stack[0].planes}
    experts = jnp.asarray(np.repeat([0, 1, 2], (1, 13, 46)).astype(np.int32))
    product = Product((Weight(planes, stack[0].packing),), experts=experts)
    assert_equal(both(jnp.asarray(drawn(4, 30, 512)), [product], mode="int16"))


def test_a_refused_permission(both, library, tmp_path):
    """Where Linux refuses tiles, AVX-512 VNNI is chosen and computes the same numbers."""
    cpp_library.use(library[0], "AMX")
    expected = np.asarray(without_tiles.product())
    command = [sys.executable, "-m", without_tiles.__name__, library[0], tmp_path / "y.npy"]
    ran = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    answer = json.loads(ran.stdout)
    assert answer["chosen"] == "AVX-512 VNNI" and "AMX" not in answer["offered"]
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected)
