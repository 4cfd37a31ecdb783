"""Strict numbers for every test, and where the reference data is."""

import contextlib
import gc
import importlib.metadata
import os
import re
from pathlib import Path

import numpy as np
import pytest

from rocmforge_jax.locate import compiled_folder
from tests.memory import Memory

# Read by jax when it is first imported; tests of light imports need jax to stay unimported here.
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")

#: Settings of tests, which compile much and compute little: for the CPU XLA compiles several times
#: as fast without most optimisations and with older emitters, which newer versions do not have.
CHEAP = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
if importlib.metadata.version("jaxlib").startswith("0.10."):
    CHEAP["XLA_FLAGS"] = (
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )
if not importlib.metadata.entry_points(group="jax_plugins"):  # on a GPU, as users have it
    for name, value in CHEAP.items():
        os.environ.setdefault(name, value)


def as_users_have_it() -> dict[str, str]:
    """The environment without `CHEAP`."""
    return {name: value for name, value in os.environ.items() if CHEAP.get(name) != value}


ROOT = Path(__file__).resolve().parents[1]
# Products in C++ are hidden where they are built, so that the suite says the same on every machine:
# numbers are plain XLA's, which are the more exact ones. The fixture `in_cpp` shows them to a test.
HIDDEN = str(ROOT / "build" / "no-library")
LIBRARIES = os.environ.get("ROCMFORGE_CPP_FOLDER")
if LIBRARIES == HIDDEN:  # set by the process that started this one, for tests side by side
    LIBRARIES = None
os.environ["ROCMFORGE_CPP_FOLDER"] = HIDDEN

#: What XLA compiled for the tests, kept for the next run, which takes a third of the time then.
COMPILED = compiled_folder("tests")
#: Bytes of it beyond which the older half is deleted.
MOST_COMPILED = 1 << 30
with contextlib.suppress(OSError):  # no home to write to: each run compiles
    COMPILED.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(COMPILED))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def pytest_configure(config):
    if hasattr(config, "workerinput") or not COMPILED.is_dir():
        return
    with contextlib.suppress(FileNotFoundError):  # another run is deleting them
        files = sorted(
            (file.stat().st_mtime, file.stat().st_size, file) for file in COMPILED.iterdir()
        )
        if sum(size for _, size, _ in files) > MOST_COMPILED:
            for _, _, file in files[: len(files) // 2]:
                file.unlink()


def pytest_collection_finish():
    """Lets the garbage collector walk over what is new, and less often: a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


MEMORY = Memory()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown():
    MEMORY.give_back()


#: The part of the reference data that every clone carries; tools/make_test_data.py makes it.
DATA = ROOT / "tests" / "data"


class _DataFolder(type(Path())):
    """A folder in tests/data: asking for a file that is not in it skips the test."""

    def __truediv__(self, name):
        path = super().__truediv__(name)
        if not path.exists():
            pytest.skip(f"tests/data has no {path.relative_to(DATA)}: set ROCMFORGE_REFERENCE")
        return path


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of ground truth: ROCMFORGE_REFERENCE, or ../shared/reference beside the checkout.

    Where it is missing, tests/data takes its place. In CI, which runs the tests for a decision, a
    missing folder is a failure; a workflow without the folder names tests/data itself.
    """
    folder = Path(os.environ.get("ROCMFORGE_REFERENCE") or ROOT.parent / "shared" / "reference")
    if not (folder / "dequant" / "index.json").is_file():
        if os.environ.get("CI") == "true":
            pytest.fail(f"no reference data at {folder}: set ROCMFORGE_REFERENCE")
        folder = DATA
    return _DataFolder(DATA) if folder.resolve() == DATA else folder


@pytest.fixture(scope="session")
def whole_reference(reference) -> Path:
    """The reference folder, for tests that need all of it; skips where tests/data stands for it."""
    if isinstance(reference, _DataFolder):
        pytest.skip("tests/data is only a part of the reference data: set ROCMFORGE_REFERENCE")
    return reference


@pytest.fixture(scope="session")
def cpp_folder() -> str:
    """Where the products in C++ are, compiled if they are not current."""
    from rocmforge_jax.cpp import build
    from rocmforge_jax.locate import cache_folder

    if build.compiler() is None:
        pytest.skip("no C++ compiler here")
    folder = LIBRARIES or str(cache_folder() / "cpp")
    build.build(folder)
    return folder


@pytest.fixture
def in_cpp(cpp_folder, monkeypatch):
    """The products in C++ are there, also for programs that the test starts."""
    if (found := os.environ.get("ROCMFORGE_BACKEND")) not in (None, "", "auto", "cpp"):
        pytest.skip(f"ROCMFORGE_BACKEND is {found}")
    monkeypatch.setenv("ROCMFORGE_CPP_FOLDER", cpp_folder)


@pytest.fixture
def optimised(monkeypatch) -> dict[str, bool | int]:
    """Options of `compile` for a program as users have it; processes have such programs, too."""
    for name in os.environ.keys() - as_users_have_it().keys():
        monkeypatch.delenv(name)
    options = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
    return options | ({"xla_cpu_use_fusion_emitters": True} if "XLA_FLAGS" in CHEAP else {})


@pytest.fixture(scope="session")
def normal():
    """(*shape) -> float32 normal numbers, others for each call's shape and seed."""
    return lambda *shape, seed=0: (
        np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)
    )


@pytest.fixture(scope="session")
def distance():
    """Relative L2 distance of an array from a float64 truth."""

    def measure(actual, truth):
        actual = np.asarray(actual).astype(np.float64)
        assert actual.shape == truth.shape
        return np.linalg.norm(actual - truth) / np.linalg.norm(truth)

    return measure


#: Of tests for each quantised type, those for these types are the essential ones: plain, with
#: minima, of super-blocks, with a table, by powers of two, ternary, of a lattice.
CORE_TYPES = ("Q4_0", "Q5_1", "Q4_K", "Q6_K", "IQ4_XS", "MXFP4", "TQ1_0", "IQ2_XS")
_TYPE = re.compile(r"(I?Q|TQ)\d\w*|MXFP4|NVFP4")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Asked for core tests, leave out those for other types."""
    if not config.option.markexpr.startswith("core"):
        return

    def types(item):
        return {
            value
            for value in item.callspec.params.values()
            if isinstance(value, str) and _TYPE.fullmatch(value)
        }

    def of_others(item):
        return hasattr(item, "callspec") and (found := types(item)) and found.isdisjoint(CORE_TYPES)

    kept, others = [], []
    for item in items:
        (others if of_others(item) else kept).append(item)
    config.hook.pytest_deselected(items=others)
    items[:] = kept
