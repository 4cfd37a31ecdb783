"""Converts messages in the format of OpenAI's API into the data that templates read."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rocmforge_jax.text.surrogates import check_data

#: The field names that clients use for the model's reasoning.
REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplateError(ValueError):
    """Raised if a template is missing or invalid, refuses its messages, or exceeds its limits.

    Also raised for messages that cannot be passed to a template.
    """


def plain(value: Any) -> Any:
    """Converts mappings, sequences, NumPy scalars and objects with `model_dump` to JSON data.

    Anything else is returned unchanged.
    """
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, type) and callable(getattr(value, "model_dump", None)):
        return plain(value.model_dump())
    return value


def read_messages(messages: Sequence[Any], *, knows_developer: bool = True) -> list[dict]:
    """Checks messages and converts them to the form that templates expect.

    Fields that are None are dropped. A missing content next to tool calls becomes None. Parts of a
    content become {"type": "text", "text": ...}. The arguments of a tool call are an object or its
    JSON text. The model's reasoning is stored under the names that templates use.

    Args:
        messages: Dictionaries, or objects with `model_dump`.
        knows_developer: Whether the template has a role "developer". If not, that role becomes
            "system", as in llama.cpp.

    Raises:
        ChatTemplateError: A message is invalid; the error contains its index.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ChatTemplateError(
            f"messages are a list of {{'role': ..., 'content': ...}}, got {type(messages).__name__}"
        )
    read = [_message(place, plain(message)) for place, message in enumerate(messages)]
    for message in read:
        if message["role"] == "developer" and not knows_developer:
            message["role"] = "system"
    return read


def without_oldest_turn(messages: Sequence[Any]) -> list[Any]:
    """Drops the first user message and everything up to the next user message.

    A conversation with fewer than two user messages is returned unchanged.
    """
    starts = [
        place for place, message in enumerate(messages) if plain(message).get("role") == "user"
    ]
    if len(starts) < 2:
        return list(messages)
    return [*messages[: starts[0]], *messages[starts[1] :]]


def _message(place: int, message: Any) -> dict:
    if not isinstance(message, dict):
        raise ChatTemplateError(
            f"message {place} is {type(message).__name__}, expected a dict with 'role' and"
            " 'content'"
        )
    if not isinstance(message.get("role"), str):
        raise ChatTemplateError(
            f"message {place} has no 'role' (a string), only {sorted(map(str, message))}"
        )
    if "content" not in message and not message.get("tool_calls"):
        raise ChatTemplateError(
            f"message {place} has no 'content', only {sorted(map(str, message))}"
        )
    content = _content(place, message.get("content"))
    given = {key: value for key, value in message.items() if value is not None}
    if "tool_calls" in given:
        given["tool_calls"] = _tool_calls(place, given["tool_calls"])
    thought = next((given[name] for name in REASONING if name in given), None)
    if thought is not None:
        given = {"thinking": thought} | given | {"reasoning_content": thought}
    return given | {"content": content}


def _content(place: int, content: Any) -> str | list[dict] | None:
    if isinstance(content, list):
        return [_part(place, part) for part in content]
    if isinstance(content, (str, type(None))):
        return content
    raise ChatTemplateError(
        f"the content of message {place} is {type(content).__name__}, expected a string or a list"
    )


def _part(place: int, part: Any) -> dict:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, dict):
        kind = part.get("type", "text")
        if kind == "text" and isinstance(part.get("text"), str):
            return {"type": "text"} | part
        what = "without a string 'text'" if kind == "text" else f"of type {kind!r}"
    else:
        what = f"that is {type(part).__name__}"
    raise ChatTemplateError(
        f"message {place} has a part {what}: models read text only, give"
        " {'type': 'text', 'text': ...}"
    )


def _tool_calls(place: int, calls: Any) -> list[dict]:
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise ChatTemplateError(f"the tool_calls of message {place} are not a list of dicts")
    return [_tool_call(place, number, call) for number, call in enumerate(calls)]


def _tool_call(place: int, number: int, call: dict) -> dict:
    if isinstance(call.get("function"), dict):
        return call | {"function": _tool_call(place, number, call["function"])}
    if "arguments" not in call:
        return call
    arguments = call["arguments"]
    if arguments is None or arguments == "":  # clients send both for a function without parameters
        arguments = {}
    parsed = _parsed(arguments)
    if isinstance(arguments, str):  # JSON text may spell a surrogate as an escape sequence
        what = f"the arguments of tool call {number} in message {place}"
        check_data(what, parsed, ChatTemplateError)
    if not isinstance(parsed, dict):
        raise ChatTemplateError(
            f"the arguments of tool call {number} in message {place} are no JSON object:"
            f" {str(arguments)[:80]!r}"
        )
    return call | {"arguments": arguments}


def _parsed(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return None
