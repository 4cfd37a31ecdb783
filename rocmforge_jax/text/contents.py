"""Finds the form of message contents that a chat template supports.

Clients send a content as text, as a list of parts, or as null, and the arguments of a tool call as
JSON text or an object. A template supports only some of these forms. Its operations on a content
show which. This module runs in the renderer's process and imports only the standard library.
"""

import json
import re
from collections.abc import Callable
from typing import Any

_ASKS_FOR_NONE = re.compile(r"""content["'\]]*\s+is\s+(not\s+)?none""")


class WrongForm(Exception):
    """Raised if the template reads text as a list of parts, or parts as text."""


class Text(str):
    """A message's content as a string, which detects templates that need a list.

    Iterating over it raises WrongForm: a template that does so expects a list of parts.
    """

    def __iter__(self):
        return _refused_loop()


def _refused_loop():
    """Raises at the first step of a loop, because the test `iterable` only creates an iterator."""
    yield from ()
    raise WrongForm


class Parts(list):
    """A content as a list of parts. A template that prints or joins it expects text.

    Attributes:
        is_read: Whether the template has read a part.
    """

    def __init__(self, parts):
        super().__init__(parts)
        self.is_read = not parts

    def __iter__(self):
        self.is_read = True
        yield from super().__iter__()

    def __getitem__(self, place):
        self.is_read = True
        return super().__getitem__(place)

    def __contains__(self, item):
        _refuse_text(item)
        return super().__contains__(item)

    def __add__(self, right):
        _refuse_text(right)
        return super().__add__(right)

    def __radd__(self, left):
        _refuse_text(left)
        return NotImplemented

    def __repr__(self):
        raise WrongForm


def _refuse_text(operand):
    if isinstance(operand, str):
        raise WrongForm


class Arguments(dict):
    """The arguments of a tool call, a dictionary that prints and concatenates as its JSON text.

    Some templates read the object, others the text.
    """

    def __init__(self, arguments: dict | str):
        is_text = isinstance(arguments, str)
        super().__init__(json.loads(arguments) if is_text else arguments)
        self._text = arguments if is_text else json.dumps(arguments, ensure_ascii=False)

    def __repr__(self):
        return self._text

    def __add__(self, right):
        return self._text + right

    def __radd__(self, left):
        return left + self._text


class Given(list):
    """A list that came from the caller. The template must not modify it."""


def in_any_form(template: str, variables: dict, render: Callable[[dict], str]) -> str:
    """Renders with the first form of contents that the template can read.

    Args:
        template: The template's text.
        variables: Its variables. Contents of "messages" are text, a list of parts, or None.
        render: Renders the template with the variables passed to it.
    """
    variables = _given(variables)
    messages = [_with_arguments(message) for message in variables.get("messages", ())]
    failure, unread, is_wrong = None, None, False
    for form, null in _forms(template, [message["content"] for message in messages]):
        if form == "parts" and not is_wrong:
            break
        contents = [_in_form(message["content"], form, null) for message in messages]
        try:
            text = render(variables | {"messages": _with_contents(messages, contents)})
        except WrongForm:
            is_wrong = True
        except MemoryError:
            raise
        except Exception as error:
            failure = failure or error
        else:
            if all(content.is_read for content in contents if isinstance(content, Parts)):
                return text
            unread = text if unread is None else unread
    if unread is not None:
        return unread
    if failure is not None:
        raise failure
    return render(variables | {"messages": Given(messages)})


def _given(value: Any) -> Any:
    """Copies the caller's data, with immutable lists."""
    if isinstance(value, dict):
        return {key: _given(item) for key, item in value.items()}
    return Given(map(_given, value)) if isinstance(value, list) else value


def _with_arguments(message: dict) -> dict:
    if "tool_calls" not in message:
        return message
    return message | {"tool_calls": Given(map(_call, message["tool_calls"]))}


def _call(call: dict) -> dict:
    if isinstance(call.get("function"), dict):
        return call | {"function": _call(call["function"])}
    return call | {"arguments": Arguments(call["arguments"])} if "arguments" in call else call


def _with_contents(messages: list[dict], contents: list) -> Given:
    return Given(message | {"content": content} for message, content in zip(messages, contents))


def _forms(template: str, contents: list) -> list[tuple[str, str | None]]:
    """Returns the forms to try, in order, each with the replacement for a content of None.

    The replacement is "", as in llama.cpp. A template that tests for none gets None first.
    """
    asks = None in contents and _ASKS_FOR_NONE.search(template)
    has_parts = any(isinstance(content, list) for content in contents)
    names = ("given", "text", "parts") if has_parts else ("given", "parts")
    return [(name, null) for name in names for null in ((None, "") if asks else ("",))]


def _in_form(content: str | list | None, form: str, null: str | None):
    if content is None:
        return null
    if isinstance(content, str):
        return Parts([{"type": "text", "text": content}]) if form == "parts" else Text(content)
    return Text("\n".join(part["text"] for part in content)) if form == "text" else Parts(content)
