"""The command line: `rocmforge-jax COMMAND`, one module for each command.

Data goes to stdout, everything else to stderr. Exit codes: 0; 2 for what the user can put right
(usage, a file, a value); 1 for anything else.
"""

import argparse
import io
import os
import sys
import warnings

from rocmforge_jax import ahead
from rocmforge_jax.cli import (
    bench,
    build_native,
    chat,
    doctor,
    generate,
    inspect,
    perplexity,
    tokenize,
)
from rocmforge_jax.cli.common import UsageError, version
from rocmforge_jax.settings import SettingError

COMMANDS = (generate, chat, inspect, tokenize, perplexity, bench, doctor, build_native)
PROGRAM = "rocmforge-jax"


def main(argv: list[str] | None = None) -> int:
    """Run the command line on `argv`, default the process's own. -> the exit code."""
    with warnings.catch_warnings():
        warnings.showwarning = _WarningPrinter()
        try:
            options = _parser().parse_args(argv)
            if isinstance(sys.stdout, io.TextIOWrapper):
                # A terminal that lacks a character must not end the program.
                sys.stdout.reconfigure(errors="replace")
            options.run(options)
            sys.stdout.flush()
        except SystemExit as error:  # argparse has said why
            return error.code if isinstance(error.code, int) else 1
        except BrokenPipeError:
            # The reader of our output has gone. Python flushes stdout once more at exit: let that
            # go nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except KeyboardInterrupt:
            print(file=sys.stderr)
            return 130
        except Exception as error:
            return _fail(error)
        finally:
            ahead.stop()  # the process ends when whatever reads ahead has noticed
    return 0


def _fail(error: Exception) -> int:
    """Say what went wrong in one line; what nobody foresaw keeps its traceback."""
    code = 2 if isinstance(error, _input_errors()) else 1
    if (
        code == 1
        and not isinstance(error, OSError | MemoryError | FloatingPointError)
        and "RESOURCE_EXHAUSTED" not in str(error)
    ):
        raise error
    _say(f"error: {error or type(error).__name__}")
    return code


def _input_errors() -> tuple[type[Exception], ...]:
    from rocmforge_jax import ChatTemplateError, GGUFError

    found = sys.modules.get("rocmforge_jax.backends")  # a command that computes has imported it
    backend_errors = () if found is None else (found.BackendError,)
    return (
        *backend_errors,
        UsageError,
        SettingError,
        GGUFError,
        ChatTemplateError,
        FileNotFoundError,
        PermissionError,
        IsADirectoryError,
        NotADirectoryError,
    )


class _WarningPrinter:
    """Prints each warning in one line, and equal ones once."""

    def __init__(self):
        self._printed = set()

    def __call__(self, message, *_, **__):
        text = str(message)
        if (cache := sys.modules.get("rocmforge_jax.compilation_cache")) is not None:
            text = cache.replace_damaged(text)
        if text not in self._printed:
            self._printed.add(text)
            _say(f"warning: {text}")


def _say(text: str):
    print(f"{PROGRAM}: {' '.join(text.split())}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(PROGRAM, description="GGUF models in JAX.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {version(PROGRAM)}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in COMMANDS:
        words = (module.__doc__ or "").splitlines()[0]
        command = commands.add_parser(
            module.NAME, help=words, description=words, allow_abbrev=False
        )
        command.set_defaults(run=module.run)
        module.add_arguments(command)
    return parser
