"""Commands in environments that lack what is usually there."""

import os
import subprocess
import sys

import jax
import pytest

from rocmforge_jax.cli.program import COMMANDS

pytestmark = pytest.mark.core

#: Runs a command with a working folder that is removed first, if there is one.
START = """
import os, shutil, sys
from rocmforge_jax.cli import main
if gone := os.environ.get("GONE"):
    os.makedirs(gone); os.chdir(gone); shutil.rmtree(gone)
sys.exit(main())
"""
#: What each command answers at once, with an exit code. {long} is a name of 5,000 letters.
QUICK = {
    "generate": ("generate --prompt größer --model {long}", 2),
    "chat": ("chat --model {long}", 2),
    "inspect": ("inspect demo", 0),
    "tokenize": ("tokenize demo größer", 0),
    "perplexity": ("perplexity {long}", 2),
    "embed": ("embed {long} größer", 2),
    "export": ("export {long} out.gguf", 2),
    "bench": ("bench --tokens zehn demo", 2),
    "doctor": ("doctor --help", 0),
    "build-native": ("build-native --help", 0),
}
#: Everything that can be odd at once.
ODD = {
    "PYTHONOPTIMIZE": "2",
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "TERM": "dumb",
    "COLUMNS": "1",
}


def ran(words, shell="", **environment):
    """The command behind a shell that closes or redirects streams."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    words = [word.format(long="a" * 5000) for word in words.split()]
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {shell}', "sh", sys.executable, "-c", START, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=env | environment,
        encoding="utf-8",
        timeout=120,
    )


def quiet(found, code):
    """One line of an error, or none."""
    assert found.returncode == code, found.stderr
    assert not any(word in found.stderr for word in ("Traceback", "Exception ignored"))
    errors = [line for line in found.stderr.splitlines() if "rocmforge-jax" in line]
    assert len(errors) <= 2 and max(map(len, errors), default=0) < 1000
    return found


def test_every_command_is_here():
    assert set(QUICK) == {module.NAME for module in COMMANDS}


@pytest.mark.parametrize("command", QUICK)
def test_everything_odd_at_once(command, tmp_path):
    (tmp_path / "file").write_text("")
    words, code = QUICK[command]
    odd = ODD | {"HOME": str(tmp_path / "file"), "GONE": str(tmp_path / "gone")}
    found = quiet(ran(words, "<&-", **odd), code)
    assert bool(found.stdout) == (code == 0)


@pytest.mark.parametrize("command", ["inspect", "generate"])
def test_closed_stdout_is_said(command):
    found = quiet(ran(QUICK[command][0], ">&-"), 2)
    assert "stdout is closed" in found.stderr and found.stdout == ""


@pytest.mark.parametrize("words", ["inspect demo --tensors", "tokenize demo text", "chat --help"])
def test_a_full_disk_is_said(words):
    found = quiet(ran(words, ">/dev/full"), 1)
    assert "No space left on device" in found.stderr


@pytest.mark.parametrize("shell", ["2>&-", "2>/dev/full"])
def test_errors_that_nobody_can_read_do_not_go_to_stdout(shell):
    found = ran("inspect nothing", shell)
    assert (found.returncode, found.stdout, found.stderr) == (2, "", "")


def test_all_streams_closed():
    assert ran("inspect demo", "<&- >&- 2>&-").returncode == 2


def test_closed_stdin_is_empty():
    assert quiet(ran("tokenize demo -", "<&-"), 0).stdout == ""


def test_other_letters_in_an_ascii_locale():
    """Text is UTF-8 whatever the locale says, and JSON escapes what stdout lacks."""
    usual, odd = (ran("tokenize demo größer --json", **env) for env in ({}, ODD))
    assert usual.stdout == odd.stdout and odd.stdout.isascii()
    assert quiet(ran("inspect größer.gguf", **ODD), 2).stderr.isascii()


def test_text_that_is_not_utf8_is_refused():
    env = dict(os.environ)
    words = [sys.executable, "-c", START, "tokenize", "demo", b"a\xff"]
    found = subprocess.run(words, capture_output=True, text=True, env=env)
    assert found.returncode == 2 and "not UTF-8 text: invalid start byte at byte 1" in found.stderr


@pytest.mark.parametrize("home", [None, "", "/nothing/there"])
def test_a_home_that_is_not_there(home, tmp_path):
    env = {} if home is None else {"HOME": home}
    saved = os.environ.pop("HOME", None)
    try:
        assert "parameters" in quiet(ran("inspect demo", **env), 0).stdout
    finally:
        if saved is not None:
            os.environ["HOME"] = saved


def test_text_is_generated_in_an_odd_environment(tmp_path):
    env = ODD | {"HOME": "/dev/null", "GONE": str(tmp_path / "gone")}
    assert quiet(ran("generate --prompt A --max-tokens 2", "<&-", **env), 0).stdout.strip()


@pytest.mark.parametrize(
    "words",
    ["generate --prompt A", "bench demo", "perplexity /dev/null", "build-native"],
    ids=lambda words: words.split()[0],
)
def test_a_platform_that_is_not_there_is_one_line(words, in_cpp):
    found = quiet(ran(words, JAX_PLATFORMS="nothing"), 2)
    assert "'nothing'" in found.stderr and "doctor" in found.stderr and found.stdout == ""


def test_a_platform_without_a_plugin_is_one_line(in_cpp):
    """JAX knows the name, and fails an assertion where its plugin is not installed."""
    if jax.default_backend() != "cpu":
        pytest.skip("the plugin is installed")
    found = quiet(ran("generate --prompt A", JAX_PLATFORMS="cuda"), 2)
    assert "JAX_PLATFORMS=cuda" in found.stderr and "doctor" in found.stderr


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("No AMD GPUs were found, skipping", "no AMD GPU found: computing on the CPU"),
        (
            "libamdhip64.so.7: cannot open",
            "AMD GPUs does not start (libamdhip64.so.7: cannot open)",
        ),
    ],
)
def test_a_plugin_that_does_not_start_is_one_line(tmp_path, reason, said):
    plugin = tmp_path / "jax_plugins" / "xla_rocm7"
    plugin.mkdir(parents=True)
    (plugin / "__init__.py").write_text(f"def initialize(): raise ValueError({reason!r})")
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    words = "generate --prompt A --max-tokens 1"
    found = quiet(ran(words, PYTHONPATH=path, JAX_PLATFORMS=""), 0)
    assert found.stderr.count("\n") == 1 and said in found.stderr and "doctor" in found.stderr
    assert quiet(ran(words, PYTHONPATH=path, JAX_PLATFORMS="cpu"), 0).stderr == ""


@pytest.mark.parametrize("value", ["JAX_ENABLE_X64=maybe", "JAX_DEFAULT_MATMUL_PRECISION=foo"])
def test_a_variable_that_keeps_jax_from_importing_is_named(value):
    name, _, text = value.partition("=")
    found = quiet(ran("generate --prompt A", **{name: text}), 2)
    assert found.stderr.count("\n") == 1 and f"({name} is set)" in found.stderr


def test_a_cache_that_cannot_be_kept_is_said_once(monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    found = quiet(ran("generate --prompt A --max-tokens 2", XDG_CACHE_HOME="/proc"), 0)
    assert found.stderr.count("/proc/rocmforge-jax cannot be written") == 1
