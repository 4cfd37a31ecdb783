"""Where compiled programs are kept, when that is said, and entries that are damaged."""

import functools
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

import rocmforge_jax as rf
from pallas_kernels.qmatmul import activations
from pallas_kernels.targets import Target
from rocmforge_jax import loading, locate
from rocmforge_jax import settings as settings_of_the_package
from rocmforge_jax.cli.program import _WarningPrinter
from rocmforge_jax.compilation_cache import enable_compilation_cache, handle_warning
from tests.pallas_kernels.conftest import lowered_to_triton

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_traceback_in_locations_limit",
)


@pytest.fixture(autouse=True)
def settings():
    """Restores JAX's settings."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def compile_something():
    jax.clear_caches()
    return jax.jit(lambda x: jnp.tan(x) * 7919)(jnp.float32(1))


@pytest.mark.core
def test_programs_are_kept_in_a_folder_also_once_jax_has_begun(tmp_path):
    compile_something()
    assert rf.enable_compilation_cache(tmp_path / "new" / "folder") == tmp_path / "new" / "folder"
    compile_something()
    assert list((tmp_path / "new" / "folder").glob("jit__lambda*-cache"))


@pytest.mark.core
def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file/folder: Not a directory"):
        rf.enable_compilation_cache(tmp_path / "file" / "folder")
    with pytest.raises(OSError, match="file: it is a file"):
        rf.enable_compilation_cache(tmp_path / "file")
    with pytest.raises(ValueError, match="empty name"):
        rf.enable_compilation_cache("")


@pytest.mark.core
@pytest.mark.parametrize("cache", ["relative", "./relative", ""])
def test_relative_folders_of_the_environment_are_ignored(monkeypatch, tmp_path, cache):
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert settings_of_the_package.cache_folder() == tmp_path / ".cache" / "rocmforge-jax"
    monkeypatch.setenv("HOME", "relative")
    assert settings_of_the_package.cache_folder() == Path("/dev/null/rocmforge-jax")


@pytest.fixture(params=["default", "named"])
def kept(request, tmp_path, monkeypatch):
    """The folder of the cache, the user's or one that JAX_COMPILATION_CACHE_DIR has named."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    folder = enable_compilation_cache(None if request.param == "default" else tmp_path / "mine")
    assert folder is not None and tmp_path in folder.parents
    return folder


@pytest.fixture
def compiled(capsys):
    """Compiles something -> its value, and what the command line says meanwhile."""

    def compiled():
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.showwarning = _WarningPrinter()
            return compile_something(), capsys.readouterr().err

    return compiled


@pytest.mark.core
@pytest.mark.parametrize("damaged", [b"", b"garbage", slice(-9)], ids=str)
def test_damaged_entries_are_replaced_and_that_is_one_line(kept, compiled, damaged):
    expected, _ = compiled()
    whole = {path: path.read_bytes() for path in kept.glob("*-cache")}
    for path, data in whole.items():
        path.write_bytes(data[damaged] if isinstance(damaged, slice) else damaged)
    value, err = compiled()
    assert value == expected and err.count("\n") == 1 and f"{kept} are replaced" in err
    assert {path: len(path.read_bytes()) > 100 for path in whole} == dict.fromkeys(whole, True)
    assert compiled() == (expected, "")


@pytest.mark.core
def test_an_entry_that_is_a_folder_is_removed_if_it_is_empty(kept, compiled):
    expected, _ = compiled()
    (entry,) = kept.glob("jit__lambda*-cache")
    entry.unlink()
    entry.mkdir()
    (entry / "file").touch()
    value, err = compiled()
    assert value == expected and err.count("\n") == 1 and f"{entry}: Directory not empty" in err
    (entry / "file").unlink()
    value, err = compiled()
    assert value == expected and f"{kept} are replaced" in err and entry.is_file()


@pytest.mark.core
def test_a_named_folder_keeps_what_cannot_be_read_for_another_reason(kept):
    (entry := kept / "jit_f-123-cache").write_text("an entry")
    text = "Error reading persistent compilation cache entry for 'jit_f': XlaError: another"
    told = handle_warning(text)
    assert entry.exists() == (kept.name == "mine") == (told == text)


@pytest.mark.core
@pytest.mark.parametrize("named", ["/dev/null", "/proc/nothing"])
def test_a_folder_that_cannot_be_written_is_one_line(compiled, named):
    jax.config.update("jax_compilation_cache_dir", named)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()
    _, err = compiled()
    assert err.count("\n") == 1 and f"{named} cannot be written" in err


@pytest.mark.core
def test_load_says_once_how_programs_are_kept(monkeypatch, capsys, tmp_path):
    """On stderr, with the plan of the memory; not where they are kept already."""
    for folder, times in ((str(tmp_path), 0), (None, 1)):
        jax.config.update("jax_compilation_cache_dir", folder)
        monkeypatch.setattr(loading, "_named_the_cache", False)
        for _ in range(2):
            rf.load("demo", progress=True)
        assert capsys.readouterr().err.count("rf.enable_compilation_cache()") == times


@pytest.mark.core
@pytest.mark.parametrize(
    "environment", [{"JAX_COMPILATION_CACHE_DIR": "mine"}, {"XDG_CACHE_HOME": "/dev/null"}]
)
def test_the_cache_is_left_alone_where_it_is_named_or_cannot_be(monkeypatch, environment):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    before = jax.config.jax_compilation_cache_dir
    enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == before


@pytest.mark.core
def test_kernels_do_not_hold_where_they_were_traced_from(monkeypatch):
    """Which is part of the key of a program, and depends on what was traced before."""
    target = Target("cuda", "9.0")
    quantize = functools.partial(activations.quantize, mode="int16", target=target)

    def text():
        # Never lowered before.
        return lowered_to_triton(
            target, lambda x: quantize(x), jax.ShapeDtypeStruct((1, 4096), jnp.bfloat16)
        )

    before = jax.config.jax_traceback_in_locations_limit
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    try:
        jax.config.update("jax_traceback_in_locations_limit", 10)
        assert "activations.py" in text()
        enable_compilation_cache()
        assert "activations.py" not in text()
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)


@pytest.mark.core
def test_programs_for_another_processor_are_kept_apart(monkeypatch, tmp_path):
    """Where machines share a home: XLA compiles for the CPU at hand, and may not notice that
    another lacks an instruction.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    folders = set()
    for processor in ("flags: avx2", "flags: avx2 avx512f"):
        monkeypatch.setattr(locate, "_processor", lambda processor=processor: processor)
        monkeypatch.setattr(
            "jax.config.update",
            lambda name, value: folders.add(value) if name == "jax_compilation_cache_dir" else None,
        )
        enable_compilation_cache()
    assert len(folders) == 2 and all(
        Path(folder).parent == tmp_path / "rocmforge-jax" / "xla" for folder in folders
    )
