"""Where products prefetch is measured on each processor and changes no number."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import samples
from pallas_kernels.qmatmul import Product, Weight
from rocmforge_jax import formats
from rocmforge_jax.cpp import library as cpp_library
from rocmforge_jax.cpp import products, tuning
from rocmforge_jax.cpp.library import Prefetch
from rocmforge_jax.quant import word_packed
from tests.cpp.conftest import NEEDS_CPP

pytestmark = [NEEDS_CPP, pytest.mark.core]


@pytest.fixture
def found(library):
    """The library, which has its default prefetch again after the test."""
    yield library[0]
    cpp_library.use_prefetch(library[0], None)


@pytest.mark.parametrize("name", ["Q4_0", "Q6_K", "Q8_0"])
def test_no_prefetch_changes_a_number(found, name):
    packing = word_packed.packing(formats.get(name))
    planes = samples.random_planes(jax.random.key(0), packing, 37, 40)
    x = jax.random.normal(jax.random.key(1), (3, 40 * 32))

    def product():
        return products.multiply(x, [Product((Weight(planes, packing),))], mode="int16")[0]

    expected = np.asarray(product())
    for wanted in (Prefetch(0, 0), Prefetch(100, 0), Prefetch(0, 1 << 20), Prefetch(64, 8192)):
        cpp_library.use_prefetch(found, wanted)
        assert cpp_library.prefetch(found) == wanted
        np.testing.assert_array_equal(product(), expected)


def test_the_default_is_used_again(found):
    start = cpp_library.prefetch(found)
    cpp_library.use_prefetch(found, Prefetch(0, 64))
    cpp_library.use_prefetch(found, None)
    assert cpp_library.prefetch(found) == start and start.l2 > 0


@pytest.mark.parametrize("wanted", [Prefetch(-1, 64), Prefetch(64, 1 << 31)])
def test_a_distance_out_of_range(found, wanted):
    start = cpp_library.prefetch(found)
    with pytest.raises(ValueError, match=f"0 to 2147483647 .*{wanted.l1}, {wanted.l2}"):
        cpp_library.use_prefetch(found, wanted)
    assert cpp_library.prefetch(found) == start


def test_the_fastest_is_used(found, monkeypatch):
    """The times are made up, so that the fastest is known."""
    fastest = Prefetch(0, 8192)

    def seconds(run):
        return 1.0 if cpp_library.prefetch(found) == fastest else 1.1

    monkeypatch.setattr(tuning, "_seconds", seconds)
    monkeypatch.setattr(tuning, "_MOST_BYTES", 1 << 16)
    measured = tuning.measure(found, [word_packed.packing(formats.get("Q4_0"))])
    assert cpp_library.prefetch(found) == fastest == max(measured, key=measured.__getitem__)
    assert len(measured) >= 10


def test_little_gain_changes_nothing(found, monkeypatch):
    start = cpp_library.prefetch(found)
    monkeypatch.setattr(
        tuning, "_seconds", lambda run: 1.0 + 0.01 * (cpp_library.prefetch(found) == start)
    )
    monkeypatch.setattr(tuning, "_MOST_BYTES", 1 << 16)
    tuning.measure(found, [word_packed.packing(formats.get("Q4_0"))])
    assert cpp_library.prefetch(found) == start


def test_a_file_remembers_it(found, tmp_path):
    file = tmp_path / "folder" / "tuned.json"
    cpp_library.use_prefetch(found, Prefetch(123, 45678))
    tuning.remember(file, found)
    cpp_library.use_prefetch(found, None)
    tuning.recall(file, found)
    assert cpp_library.prefetch(found) == Prefetch(123, 45678)
    assert [one.name for one in file.parent.iterdir()] == ["tuned.json"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", json.dumps({"l1": 4}), json.dumps({"l1": 4, "l2": -9})]
)
def test_a_damaged_file_is_ignored(found, tmp_path, text):
    start = cpp_library.prefetch(found)
    (file := tmp_path / "tuned.json").write_text(text)
    tuning.recall(file, found)
    tuning.recall(tmp_path / "missing.json", found)
    assert cpp_library.prefetch(found) == start


def test_a_folder_that_cannot_be_written(found, tmp_path):
    (tmp_path / "file").write_text("")
    tuning.remember(tmp_path / "file" / "tuned.json", found)


def test_a_measurement(found, monkeypatch):
    monkeypatch.setattr(tuning, "_MOST_BYTES", 1 << 20)
    monkeypatch.setattr(tuning, "ROUNDS", 1)
    measured = tuning.measure(found, [word_packed.packing(formats.get("Q8_0"))])
    assert all(1e6 < speed < 1e13 for speed in measured.values())
    assert jnp.isfinite(sum(measured.values()))
