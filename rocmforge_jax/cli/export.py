"""The command `export`."""

import contextlib
import sys
from pathlib import Path

from rocmforge_jax.cli import common

NAME = "export"
HELP = "Write a model to a file, packed in other types if wanted."


def add_arguments(parser):
    parser.add_argument("file", metavar="MODEL", help=common.MODEL)
    parser.add_argument(
        "out",
        metavar="OUT",
        help="the new file or folder to write: FILE.gguf, FILE.safetensors or a folder",
    )
    parser.add_argument(
        "--type",
        action="append",
        default=[],
        dest="types",
        metavar="[PATTERN=]TYPE",
        help="pack matrices in this type, such as Q4_K; may be given several times, with patterns"
        " of tensor names, such as '*.ffn_down=Q6_K': the first pattern that matches counts",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace OUT if it is an existing file"
    )
    parser.add_argument(
        "--format",
        choices=("gguf", "safetensors"),
        help="default: what OUT ends in",
    )


def run(options):
    with common.usage_errors():
        types = _types(options.types)
    _check_is_new(Path(options.out).expanduser(), options.force)
    common.prepare_jax(options.file)
    import rocmforge_jax
    from rocmforge_jax.export import check_format

    with common.usage_errors():
        check_format(Path(options.out), options.format)
    lm = rocmforge_jax.load(options.file)
    with _user_errors():
        rocmforge_jax.save(lm, options.out, types=types, format=options.format)
    print(f"{options.out}: {_size(Path(options.out)) / 1e6:,.1f} MB", file=sys.stderr)


def _check_is_new(out: Path, force: bool):
    """Raises UsageError for an existing file without `force`, and for a folder with files."""
    if out.is_dir():
        if out.suffix != ".gguf" and any(out.iterdir()):
            raise common.UsageError(f"{out} is a folder that is not empty: name a new one")
    elif out.exists() and not force:
        raise common.UsageError(
            f"{out} exists already: give another name, or --force to replace it"
        )


@contextlib.contextmanager
def _user_errors():
    """A type without a quantiser is one of the user's mistakes too."""
    try:
        with common.usage_errors():
            yield
    except NotImplementedError as error:
        raise common.UsageError(str(error)) from error


def _types(words: list[str]) -> dict[str, str] | str | None:
    """Returns the type of each pattern, or the one type of all matrices; None without types."""
    from rocmforge_jax import formats

    found = {}
    for word in words:
        pattern, _, type = word.rpartition("=")
        formats.get(type)  # a ValueError for an unknown name
        if found.setdefault(pattern or "*", type) != type:
            raise ValueError(f"--type gives {pattern or 'all matrices'} two types: {word}")
    return found["*"] if found.keys() == {"*"} else found or None


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
