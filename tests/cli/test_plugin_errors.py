"""One line for what JAX logs about GPUs that it cannot use."""

import logging

import pytest

from rocmforge_jax.cli import plugin_errors

pytestmark = pytest.mark.core


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            "An NVIDIA GPU may be present on this machine, but a CUDA-enabled jaxlib is not",
            "JAX has no plugin for this machine's NVIDIA GPU",
        ),
        (
            "CUDA backend failed to initialize: no supported devices found for platform CUDA.",
            "no NVIDIA GPU found",
        ),
        ("CUDA backend failed to initialize: version 7 of libx", "(version 7 of libx)"),
        ("Jax plugin configuration error: Plugin module xla_rocm7 does not exist", "AMD"),
    ],
)
def test_what_is_logged_becomes_one_line(capsys, monkeypatch, message, said):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    logger = logging.getLogger("jax._src.xla_bridge")
    before = logger.filters[:]
    try:
        plugin_errors.shorten()
        logger.warning(message)
    finally:
        logger.filters[:] = before
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and said in err and "computing on the CPU" in err


def test_other_messages_stay(capsys):
    record = logging.makeLogRecord({"msg": "Something else"})
    assert plugin_errors._PluginErrors().filter(record) and capsys.readouterr().err == ""
