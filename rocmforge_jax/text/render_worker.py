"""The program that renders chat templates, run as a process of its own by `renderer.py`.

It imports nothing of the package but `contents`.

A request is one line of JSON on stdin, {"template", "variables"}; a reply one line on stdout,
{"text"} or {"error", "spent"}. The environment is the one that templates are written for: that of
`apply_chat_template` in Hugging Face transformers.
"""

import json
import sys
from pathlib import Path
from types import ModuleType

if __name__ == "__main__":
    # Started with -I -S, so the only import paths are those that the parent passes.
    sys.path[:] = json.loads(sys.argv[1])
    # Packages without their own code, which would import `tokenizers` and NumPy.
    for name, place in (("rocmforge_jax", 1), ("rocmforge_jax.text", 0)):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(Path(__file__).resolve().parents[place])]

import functools
import os
import re
from collections.abc import ItemsView, Iterable, Iterator, KeysView, ValuesView
from datetime import datetime
from urllib.parse import unquote_to_bytes

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError, UndefinedError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import url_quote

from rocmforge_jax.text.contents import Parts, WrongForm, in_any_form

MEMORY_LIMIT = 512 << 20  # bytes of address space
OUTPUT_LIMIT = 16 << 20  # characters
CPU_LIMIT = (
    600  # seconds in the life of the process, should the parent have died that would have killed it
)


# Lone surrogates are marks of the caller. No valid text has them.
MARK = re.compile("[\ud800-\udfff]")
BYTES_OF_MARK = re.compile(b"\xed[\xa0-\xbf][\x80-\xbf]")
QUOTED_MARK = re.compile("%ED%[AB][0-9A-F]%[89AB][0-9A-F]")


class Refused(Exception):
    """The template called `raise_exception`, or wrote too much."""


class GenerationTag(Extension):
    """`{% generation %}`: marks the assistant's words for training.

    For rendering its body is all there is.
    """

    tags = {"generation"}

    def parse(self, parser):
        """Parses the block as a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def raise_exception(message):
    """Refuses the messages, in the template's words."""
    raise Refused(f"the template refuses these messages: {message}")


def strftime_now(form):
    """Formats the current local time."""
    return datetime.now().strftime(form)


def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    """Writes JSON; unlike Jinja's filter, it does not escape HTML, and it takes generators."""
    if isinstance(value, Parts):  # where a list is not expected, JSON is the way out
        raise WrongForm
    text = json.dumps(
        value,
        ensure_ascii=False,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
        default=as_list,
    )
    if not ensure_ascii:
        return text
    # Marks have to stay single characters.
    return re.sub(r"[^\x00-\x7e\ud800-\udfff]", lambda found: json.dumps(found[0])[1:-1], text)


def url_encoded(value):
    """Quotes a text, or pairs of texts, for a URL; like Jinja's filter, but marks stay marks."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        return url_quoted(value, False)
    pairs = value.items() if isinstance(value, dict) else value
    return "&".join(f"{url_quoted(key, True)}={url_quoted(item, True)}" for key, item in pairs)


def url_quoted(value, for_qs: bool) -> str:
    """Quotes one text for a URL."""
    quoted = url_quote(str(value).encode("utf-8", "surrogatepass"), for_qs=for_qs)
    return QUOTED_MARK.sub(
        lambda mark: unquote_to_bytes(mark[0]).decode("utf-8", "surrogatepass"), quoted
    )


def encode(text: str, encoding="utf-8", errors="strict") -> bytes:
    """Does what `str.encode` does; a mark becomes its bytes in UTF-8."""
    pieces = MARK.split(text)
    marks = [mark.encode("utf-8", "surrogatepass") for mark in MARK.findall(text)]
    encoded = [piece.encode(encoding, errors) for piece in pieces]
    return encoded[0] + b"".join(mark + piece for mark, piece in zip(marks, encoded[1:]))


def decode(data: bytes, encoding="utf-8", errors="strict") -> str:
    """Does what `bytes.decode` does; the bytes of a mark become the mark."""
    pieces = BYTES_OF_MARK.split(data)
    marks = [mark.decode("utf-8", "surrogatepass") for mark in BYTES_OF_MARK.findall(data)]
    decoded = [piece.decode(encoding, errors) for piece in pieces]
    return decoded[0] + "".join(mark + piece for mark, piece in zip(marks, decoded[1:]))


def as_list(value):
    """The items of a generator or a view, which JSON lacks."""
    if isinstance(value, Iterator | KeysView | ValuesView | ItemsView):
        return list(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, but a template may change lists that it made, as those of Kimi K2 do."""

    def is_safe_attribute(self, obj, attr, value):
        """Whether a template may use an attribute."""
        if type(obj) is list and attr in ("append", "pop"):
            return True
        return super().is_safe_attribute(obj, attr, value)

    def getattr(self, obj, attribute):
        """Returns an attribute; encoding and decoding leave marks alone."""
        if attribute == "encode" and isinstance(obj, str):
            return functools.partial(encode, obj)
        if attribute == "decode" and isinstance(obj, bytes):
            return functools.partial(decode, obj)
        return super().getattr(obj, attribute)


@functools.lru_cache(maxsize=8)
def compiled(template: str) -> jinja2.Template:
    """Compiles a template in the sandbox."""
    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationTag]
    )
    environment.filters.update(tojson=to_json, urlencode=url_encoded)
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return environment.from_string(template)


def rendered(template: str, variables: dict) -> str:
    """Renders a template, with contents of messages in the first form that it can read."""
    return in_any_form(template, variables, functools.partial(generated, template))


def generated(template: str, variables: dict) -> str:
    """Renders a template; refuses a text that becomes too long."""
    pieces, length = [], 0
    for piece in compiled(template).generate(variables):
        pieces.append(piece)
        length += len(piece)
        if length > OUTPUT_LIMIT:
            raise Refused(f"the template wrote more than {OUTPUT_LIMIT} characters")
    return "".join(pieces)


def explained(error: Exception) -> str:
    """Turns an error of the template into a message for the user."""
    match error:
        case Refused():
            return str(error)
        case TemplateSyntaxError():
            return f"line {error.lineno} of the template: {error.message}"
        case SecurityError():
            return f"the template does what is not allowed: {error}"
        case UndefinedError():
            return f"the template uses what is not there: {error}"
        case RecursionError():
            return "the template calls itself too deeply"
        case MemoryError():
            return f"the template needs more than {MEMORY_LIMIT >> 20} MB of memory"
    return f"the template fails with {type(error).__name__}: {error}"


def bound_resources():
    """Bounds memory, time, files written and processes started.

    Windows can bound none of them, and macOS cannot bound memory.
    """
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT, CPU_LIMIT))
    for nothing in (resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC, resource.RLIMIT_CORE):
        resource.setrlimit(nothing, (0, 0))


def answer() -> dict | None:
    """The reply to the next request, None at the end of stdin."""
    try:
        line = sys.stdin.buffer.readline()
        return {"text": rendered(**json.loads(line))} if line else None
    except Exception as error:
        # What ran out of memory may leave it in pieces: "spent" asks for a new process.
        return {"error": explained(error)[:1000], "spent": isinstance(error, MemoryError)}


def main():
    """Answers requests on stdin, one line each, until it is closed."""
    bound_resources()
    try:
        while (reply := answer()) is not None:
            sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
            sys.stdout.buffer.flush()
    except BrokenPipeError:  # the parent has ended, and Python would complain at the end
        os._exit(1)


if __name__ == "__main__":
    main()
