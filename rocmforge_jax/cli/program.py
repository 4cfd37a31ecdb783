"""Runs a command and converts errors to one line and an exit code."""

import argparse
import contextlib
import errno
import sys
import traceback
import warnings

from rocmforge_jax import ahead, settings
from rocmforge_jax.cli import (
    bench,
    build_native,
    chat,
    doctor,
    embed,
    export,
    generate,
    inspect,
    perplexity,
    streams,
    tokenize,
)
from rocmforge_jax.cli.common import UsageError, version
from rocmforge_jax.cli.flags import in_flags
from rocmforge_jax.cli.parser import CommandParser, Parser

COMMANDS = (
    generate,
    chat,
    embed,
    inspect,
    tokenize,
    perplexity,
    export,
    bench,
    doctor,
    build_native,
)
PROGRAM = "rocmforge-jax"
#: The longest word, such as a path, in characters. An error omits the middle of a longer one.
LONGEST_WORD = 300
#: The system's errors for an invalid path, in addition to those with their own exception class.
_WRONG_PATHS = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENXIO)


def run(argv: list[str] | None) -> int:
    """Runs the command line and returns the exit code.

    Args:
        argv: The arguments; None for those of the process.
    """
    streams.prepare()
    with warnings.catch_warnings():
        warnings.showwarning = _WarningPrinter()
        if sys.stdout is None:
            _say("error: stdout is closed; /dev/null takes what is not wanted")
            return 2
        code = _attempt(argv)
        problem = streams.flush(sys.stdout)
        if problem and code == 0:
            _say(f"error: {problem}")
        streams.flush(sys.stderr)
        return code if problem is None else code or 1


def _attempt(argv) -> int:
    try:
        options = _parser().parse_args(argv)
        return options.run(options) or 0
    except SystemExit as error:  # argparse has printed the reason
        return error.code if isinstance(error.code, int) else 1
    except BrokenPipeError:  # the reader of our output has exited
        return 1
    except KeyboardInterrupt:
        _print_error("")
        return 130
    except Exception as error:
        return _fail(error)
    finally:
        ahead.stop()  # the process waits until the prefetch thread has stopped


def _fail(error: Exception) -> int:
    """Prints an error in one line and returns the exit code. Unexpected errors are raised again."""
    if problem := _problem_of_jax(error):
        _say(f"error: {problem}; `{PROGRAM} doctor` shows the remedy")
        return 2
    is_input = isinstance(error, _input_errors()) or (
        isinstance(error, OSError) and error.errno in _WRONG_PATHS
    )
    code = 2 if is_input else 1
    if (
        code == 1
        and not isinstance(error, OSError | MemoryError | FloatingPointError)
        and "RESOURCE_EXHAUSTED" not in str(error)
    ):
        raise error
    _say(f"error: {_text_of(error)}")
    return code


def _text_of(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def _problem_of_jax(error: Exception) -> str | None:
    """Returns why JAX cannot be imported or has no device, or None if it works."""
    if isinstance(error, ImportError):
        ours = (error.name or "").startswith(("rocmforge_jax", "pallas_kernels"))
        return None if ours else f"{error}"
    if _importing_jax(error):
        named = settings.named_in(str(error), settings.jax_variables())
        return f"jax does not start: {error}" + (f" ({named} is set)" if named else "")
    jax = sys.modules.get("jax")
    if not isinstance(error, RuntimeError | AssertionError) or jax is None:
        return None
    try:
        jax.devices()
    except RuntimeError as reason:
        return f"jax does not start: {reason}"
    except AssertionError:  # of a platform for which no plugin is installed
        return f"jax does not start: it has no plugin for JAX_PLATFORMS={jax.config.jax_platforms}"
    return None


def _importing_jax(error: Exception) -> bool:
    """Returns whether an exception was raised while JAX was imported."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(
        frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "jax"
        for frame in frames
    )


def _input_errors() -> tuple[type[Exception], ...]:
    from rocmforge_jax import ChatTemplateError, GGUFError

    found = sys.modules.get("rocmforge_jax.backends")  # only imported by commands that compute
    backend_errors = () if found is None else (found.BackendError,)
    return (
        *backend_errors,
        UsageError,
        settings.SettingError,
        GGUFError,
        ChatTemplateError,
        FileNotFoundError,
        PermissionError,
        IsADirectoryError,
        NotADirectoryError,
    )


class _WarningPrinter:
    """Prints each warning in one line, and repeated ones only once."""

    def __init__(self):
        self._printed = set()

    def __call__(self, message, *_, **__):
        text = str(message)
        if (cache := sys.modules.get("rocmforge_jax.compilation_cache")) is not None:
            text = cache.handle_warning(text)
        if text not in self._printed:
            self._printed.add(text)
            _say(f"warning: {text}")


def _say(text: str):
    _print_error(f"{PROGRAM}: {' '.join(map(_shortened, in_flags(text).split()))}")


def _shortened(word: str) -> str:
    return word if len(word) <= LONGEST_WORD else f"{word[: LONGEST_WORD // 2]}...{word[-20:]}"


def _print_error(line: str):
    with contextlib.suppress(OSError):  # stderr is full or has no reader
        print(line, file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(PROGRAM, description="GGUF models in JAX.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {version(PROGRAM)}")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=Parser
    )
    for module in COMMANDS:
        command = commands.add_parser(
            module.NAME, help=module.HELP, description=module.HELP, allow_abbrev=False
        )
        command.set_defaults(run=module.run)
        module.add_arguments(command)
    return parser
