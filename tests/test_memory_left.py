"""The machine's free memory, as /proc/meminfo says it."""

import pytest

from rocmforge_jax import memory

pytestmark = pytest.mark.core


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("MemTotal: 900 kB\nMemAvailable:     37 kB\n", 37 * 1024),
        ("MemTotal: 900 kB\n", None),
        ("", None),
    ],
)
def test_available_bytes(tmp_path, monkeypatch, text, found):
    (tmp_path / "meminfo").write_text(text)
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    assert memory.available_bytes() == found


def test_a_system_that_does_not_say(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "missing")
    assert memory.available_bytes() is None
