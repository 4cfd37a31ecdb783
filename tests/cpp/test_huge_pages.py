"""Memory of planes: aligned, apart from one another, on huge pages, and returned."""

import gc
import mmap
from pathlib import Path

import numpy as np
import pytest

from rocmforge_jax.cpp import huge_pages

pytestmark = pytest.mark.core

SIZES = [(3, 5), (1,), (0, 4), (700, 1000), (5_000_001,), (9, 1 << 20), (40_000_000,)]


def test_arrays_are_aligned_and_apart():
    arrays = [huge_pages.empty(size, np.uint16) for size in [*SIZES, *SIZES]]
    for i, array in enumerate(arrays):
        array[...] = i
    for i, array in enumerate(arrays):
        assert array.shape == SIZES[i % len(SIZES)] and array.dtype == np.uint16
        assert array.ctypes.data % huge_pages.ALIGNMENT == 0 and (array == i).all()


def mapping_of(array) -> dict[str, str]:
    """What Linux tells about the memory that an array is in."""
    found = {}
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if "-" in name.split(" ")[0]:
            first, last = (int(end, 16) for end in name.split(" ")[0].split("-"))
            found = {} if first <= array.ctypes.data < last else None
        elif found is not None:
            found[name] = value
            if name == "VmFlags":
                return found
    raise AssertionError("no mapping holds the array")


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="the system has no huge pages")
@pytest.mark.parametrize("elements", [1000, 30_000_000])
def test_small_and_large_arrays_ask_for_huge_pages(elements):
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("this kernel is built without huge pages")
    assert " hg" in mapping_of(huge_pages.empty((elements,), np.float32))["VmFlags"]


def test_the_memory_of_an_array_that_is_gone_is_returned():
    array = huge_pages.empty((huge_pages.LARGE,), np.uint8)
    base = array
    while isinstance(base.base, np.ndarray):
        base = base.base
    mapped = base.base.obj if isinstance(base.base, memoryview) else base.base
    with pytest.raises(BufferError):
        mapped.close()  # the array is still there
    del array, base
    gc.collect()
    mapped.close()


def test_systems_without_huge_pages_have_aligned_memory(monkeypatch):
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    array = huge_pages.empty((huge_pages.LARGE + 5,), np.uint8)
    assert array.ctypes.data % huge_pages.ALIGNMENT == 0 and len(array) == huge_pages.LARGE + 5
