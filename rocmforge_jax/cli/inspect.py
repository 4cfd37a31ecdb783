"""The command `inspect`."""

import warnings

from rocmforge_jax.cli import common
from rocmforge_jax.gguf import GGUFError, open_gguf
from rocmforge_jax.gguf.errors import shortened
from rocmforge_jax.gguf.kinds import why_no_model
from rocmforge_jax.gguf.overview import ITEMS, parameters, types
from rocmforge_jax.locate import resolve

NAME = "inspect"
HELP = "Show what is in a GGUF file, and whether it loads. Reads the head of the file only."
#: How many characters of a value are shown without --json.
WIDTH = 80


def add_arguments(parser):
    parser.add_argument(
        "file", metavar="FILE", help=f"{common.MODEL}; any file of a split model opens all of it"
    )
    parser.add_argument("--tensors", action="store_true", help="list every tensor")
    parser.add_argument(
        "--check",
        action="store_true",
        help="say whether the file loads, and if not, everything that it lacks; then exit code 2",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help=f"print one JSON object, tensors included; of arrays the first {ITEMS} items",
    )


def run(options):
    with open_gguf(resolve(options.file)) as gguf:
        problems, notes = _check(gguf) if options.check else ([], [])
        if options.json:
            checked = {"loads": not problems, "problems": problems, "notes": notes}
            common.print_json(described(gguf) | (checked if options.check else {}))
        else:
            _print(gguf, options.tensors)
            if options.check:
                _print_check(problems, notes)
        if problems:
            count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
            raise common.UsageError(f"{gguf.path} does not load: {count}, on stdout")


def _check(gguf) -> tuple[list[str], list[str]]:
    """Returns the problems that prevent loading a file, and the warnings from loading it."""
    if why := why_no_model(gguf):  # this check does not import JAX
        return [why], []
    from rocmforge_jax.models import file_problems
    from rocmforge_jax.text import chat_template_from_metadata, tokenizer_from_metadata

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        problems = file_problems(gguf)
        for read in (tokenizer_from_metadata, chat_template_from_metadata):
            try:
                read(gguf.metadata)
            except GGUFError as error:
                problems.append(str(error))
    prefix = f"{gguf.path}: "
    notes = dict.fromkeys(str(warning.message).removeprefix(prefix) for warning in caught)
    return [problem.removeprefix(prefix) for problem in problems], list(notes)


def _print_check(problems, notes):
    print(f"\nloads: {'no' if problems else 'yes'}")
    for line in (*problems, *(f"note: {note}" for note in notes)):
        print(f"  {_printable(line)}")


def described(gguf) -> dict:
    """Describes a file with JSON types.

    "metadata" maps each key to the type (of the items), the count (None unless an array) and the
    value (an array's first items).
    """
    return {
        "path": str(gguf.path),
        "files": [str(path) for path in gguf.paths],
        "version": gguf.version,
        "byte_order": gguf.byte_order,
        "alignment": gguf.alignment,
        "parameters": parameters(gguf.tensors),
        "bytes": sum(tensor.nbytes for tensor in gguf.tensors.values()),
        "metadata": {key: _described_value(gguf.metadata, key) for key in gguf.metadata},
        "tensors": [
            {
                "name": t.name,
                "shape": list(t.shape),
                "type": t.format.name,
                "offset": t.offset,
                "bytes": t.nbytes,
                "file": str(t.path),
            }
            for t in gguf.tensors.values()
        ],
    }


def _described_value(metadata, key):
    entry, value = metadata.entry(key), metadata[key]
    if entry.count is not None:
        value = value[:ITEMS]
        value = list(value) if isinstance(value, tuple) else value.tolist()
    return {"type": entry.type, "count": entry.count, "value": value}


def _print(gguf, list_tensors):
    print(gguf.path if len(gguf.paths) == 1 else f"{gguf.path}, one of {len(gguf.paths)} files")
    nbytes = sum(tensor.nbytes for tensor in gguf.tensors.values())
    count = parameters(gguf.tensors)
    print(f"GGUF version {gguf.version}, {gguf.byte_order} endian, alignment {gguf.alignment}")
    bits = f", {8 * nbytes / count:.2f} bits each" if count else ""
    print(f"{count:,} parameters in {len(gguf.tensors)} tensors, {nbytes:,} bytes{bits}")
    print(f"\nmetadata, {len(gguf.metadata)} keys")
    for key in gguf.metadata:
        print(f"  {_printable(key)} = {_shown(gguf.metadata, key)}")
    print("\ntypes")
    for name, (count, size) in types(gguf.tensors).items():
        print(f"  {name:<8} {count:>5} tensors {size:>16,} bytes")
    if list_tensors:
        print("\ntensors")
        for tensor in gguf.tensors.values():
            print(f"  {_printable(tensor.name):<40} {tensor.format.name:<8} {list(tensor.shape)}")


def _shown(metadata, key) -> str:
    described = _described_value(metadata, key)
    text = repr(described["value"])
    text = text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."
    return text if described["count"] is None else f"{metadata.describe(key)}: {text}"


def _printable(text: str) -> str:
    """Escapes control characters in a name from the file, which could affect the terminal."""
    return shortened(repr(text)[1:-1])
