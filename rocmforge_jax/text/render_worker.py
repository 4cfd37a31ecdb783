"""Renders chat templates. `renderer.py` runs this program in a separate process.

Of this package it imports only `contents`.

A request is one line of JSON on stdin: {"template", "variables"}. A reply is one line on stdout:
{"text"} or {"error", "spent"}. Templates get the same environment as in `apply_chat_template` of
Hugging Face transformers.
"""

import json
import sys
from pathlib import Path
from types import ModuleType

if __name__ == "__main__":
    # Started with -I -S, so the only import paths are those that the parent passes.
    sys.path[:] = json.loads(sys.argv[1])
    # Register empty packages, because the real ones would import `tokenizers` and NumPy.
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
CPU_LIMIT = 600  # seconds in the life of the process, in case the parent dies before it can kill it


# The caller uses lone surrogates as marks, because valid text does not contain them.
MARK = re.compile("[\ud800-\udfff]")
BYTES_OF_MARK = re.compile(b"\xed[\xa0-\xbf][\x80-\xbf]")
QUOTED_MARK = re.compile("%ED%[AB][0-9A-F]%[89AB][0-9A-F]")


class Refused(Exception):
    """Raised if the template calls `raise_exception` or writes too much."""


class GenerationTag(Extension):
    """The tag `{% generation %}`, which marks the assistant's words for training.

    Rendering outputs its body.
    """

    tags = {"generation"}

    def parse(self, parser):
        """Parses the block as a separate scope."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def raise_exception(message):
    """Raises Refused with the template's message."""
    raise Refused(f"the template refuses these messages: {message}")


def strftime_now(form):
    """Formats the current local time."""
    return datetime.now().strftime(form)


def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    """Converts to JSON. Unlike Jinja's filter, it accepts generators and does not escape HTML."""
    if isinstance(value, Parts):  # a template that does not expect a list falls back to JSON
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
    # Marks must stay single characters.
    return re.sub(r"[^\x00-\x7e\ud800-\udfff]", lambda found: json.dumps(found[0])[1:-1], text)


def url_encoded(value):
    """Quotes a text, or pairs of texts, for a URL. Like Jinja's filter, but marks are kept."""
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
    """Like `str.encode`, but a mark becomes its bytes in UTF-8."""
    pieces = MARK.split(text)
    marks = [mark.encode("utf-8", "surrogatepass") for mark in MARK.findall(text)]
    encoded = [piece.encode(encoding, errors) for piece in pieces]
    return encoded[0] + b"".join(mark + piece for mark, piece in zip(marks, encoded[1:]))


def decode(data: bytes, encoding="utf-8", errors="strict") -> str:
    """Like `bytes.decode`, but the bytes of a mark become the mark."""
    pieces = BYTES_OF_MARK.split(data)
    marks = [mark.decode("utf-8", "surrogatepass") for mark in BYTES_OF_MARK.findall(data)]
    decoded = [piece.decode(encoding, errors) for piece in pieces]
    return decoded[0] + "".join(mark + piece for mark, piece in zip(marks, decoded[1:]))


def as_list(value):
    """Returns the items of a generator or a view as a list, because JSON supports neither."""
    if isinstance(value, Iterator | KeysView | ValuesView | ItemsView):
        return list(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, except that a template may append to and pop from lists.

    The templates of Kimi K2 need this. The caller's lists are `Given` objects and stay immutable.
    """

    def is_safe_attribute(self, obj, attr, value):
        """Returns whether a template may use an attribute."""
        if type(obj) is list and attr in ("append", "pop"):
            return True
        return super().is_safe_attribute(obj, attr, value)

    def getattr(self, obj, attribute):
        """Returns an attribute; `encode` and `decode` are replaced by versions that keep marks."""
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
    """Renders a template, with message contents in the first form that it can read."""
    return in_any_form(template, variables, functools.partial(generated, template))


def generated(template: str, variables: dict) -> str:
    """Renders a template and raises Refused if the text becomes too long."""
    pieces, length = [], 0
    for piece in compiled(template).generate(variables):
        pieces.append(piece)
        length += len(piece)
        if length > OUTPUT_LIMIT:
            raise Refused(f"the template wrote more than {OUTPUT_LIMIT} characters")
    return "".join(pieces)


def explained(error: Exception) -> str:
    """Converts a template's error to a message for the user."""
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
    """Limits memory and CPU time, and forbids writing files and starting processes.

    On Windows no limit is available, and on macOS memory cannot be limited.
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
    """Returns the reply to the next request, or None at the end of stdin."""
    try:
        line = sys.stdin.buffer.readline()
        return {"text": rendered(**json.loads(line))} if line else None
    except Exception as error:
        # Memory may be fragmented after a MemoryError, so "spent" requests a new process.
        return {"error": explained(error)[:1000], "spent": isinstance(error, MemoryError)}


def main():
    """Answers requests on stdin, one line each, until it is closed."""
    bound_resources()
    try:
        while (reply := answer()) is not None:
            sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
            sys.stdout.buffer.flush()
    except BrokenPipeError:  # the parent has ended; a normal exit would print a traceback
        os._exit(1)


if __name__ == "__main__":
    main()
