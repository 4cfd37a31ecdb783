"""Ends a rendered conversation within its last message, as transformers does.

`continued` appends a sign to the message, and `cut_at_end` cuts the rendered text there.
"""

import re

from rocmforge_jax.text.marks import unescaped
from rocmforge_jax.text.messages import REASONING, ChatTemplateError

_SIGN = "\udbfe"  # a lone surrogate, which valid text does not contain
_END = _SIGN + " "  # a template that trims the message removes the space


def continued(messages: list[dict], field: bool | str, template: str) -> tuple[list[dict], str]:
    """Marks the end of the last message.

    Args:
        messages: The conversation, which is not modified.
        field: The field to continue; True means "content".
        template: The template's text, which must use the field.

    Returns:
        The conversation with the sign, and the text to continue.

    Raises:
        ChatTemplateError: There is nothing to continue.
    """
    if not messages:
        raise ChatTemplateError("continue_final_message: the conversation is empty")
    field = field if isinstance(field, str) else "content"
    last = messages[-1]
    text = last.get(field)
    if text is None:
        raise ChatTemplateError(f"continue_final_message: the last message has no {field!r}")
    # The model's reasoning has several field names; a template reads one of them.
    names = (
        [name for name in REASONING if last.get(name) == text] if field in REASONING else [field]
    )
    if not any(name in template for name in names):
        raise ChatTemplateError(f"continue_final_message: the template uses no {field!r}")
    if isinstance(text, list):
        if not text:
            raise ChatTemplateError("continue_final_message: the last message has no text")
        *parts, part = text
        text, value = part["text"], [*parts, part | {"text": part["text"] + _END}]
    elif isinstance(text, str):
        value = text + _END
    else:
        raise ChatTemplateError(
            f"continue_final_message: the {field!r} of the last message is"
            f" {type(text).__name__}, expected a string"
        )
    return [*messages[:-1], last | dict.fromkeys(names, value)], text


def cut_at_end(rendered: str, text: str) -> str:
    """Cuts a rendered conversation at the sign.

    Args:
        rendered: The text with the sign.
        text: The message to continue.

    Raises:
        ChatTemplateError: The template drops the message or a part of it.
    """
    if _SIGN not in rendered:
        rendered = unescaped(rendered)
    if _SIGN not in rendered or text.strip() not in rendered:
        raise ChatTemplateError(
            "continue_final_message: the last message is not in the rendered text as it is, since"
            f" the template leaves something out: {text.strip()[:80]!r}"
        )
    place = rendered.rindex(_SIGN)
    kept = rendered[: place + len(_END if rendered.startswith(_END, place) else _SIGN)]
    # A template that writes the message twice leaves several signs.
    return re.sub(rf"\s*{_SIGN}", "", kept.replace(_END, ""))
