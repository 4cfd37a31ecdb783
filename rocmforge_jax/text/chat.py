"""Chat templates: messages to the prompt that a model was trained on."""

from collections.abc import Mapping, Sequence
from typing import Any

from rocmforge_jax.text import metadata as meta
from rocmforge_jax.text.renderer import RENDERER, RenderError
from rocmforge_jax.text.tokenizer import DEFAULT_IDS

TEMPLATE_LIMIT = 1 << 20  # characters; the longest template in use has about 30,000
TIME_LIMIT = 2.0  # seconds; the slowest template in use takes milliseconds


class ChatTemplateError(ValueError):
    """A template that is missing, wrong, refuses its messages or exceeds its bounds.

    Or messages that are none.
    """


class ChatTemplate:
    """A Jinja template of Hugging Face's kind.

    It is run in a process of its own with bounds on time, memory and output.
    """

    def __init__(
        self,
        text: str | None,
        *,
        bos_token: str = "",
        eos_token: str = "",
        time_limit: float = TIME_LIMIT,
    ):
        if text is not None and len(text) > TEMPLATE_LIMIT:
            raise ChatTemplateError(
                f"the chat template has {len(text)} characters, the limit is {TEMPLATE_LIMIT}"
            )
        self.text = text
        self.bos_token, self.eos_token, self.time_limit = bos_token, eos_token, time_limit

    def __repr__(self) -> str:
        return (
            "ChatTemplate(None)"
            if self.text is None
            else f"ChatTemplate({len(self.text)} characters)"
        )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **kwargs,
    ) -> str:
        """The prompt for `messages`, [{"role": "user", "content": "..."}, ...].

        Encode it with `parse_special=True`.

        add_generation_prompt: end with the start of the assistant's answer. tools: JSON schemas of
        functions. kwargs: further variables that the template knows, such as `enable_thinking`.
        ChatTemplateError with the reason where it fails.
        """
        if self.text is None:
            raise ChatTemplateError(
                "the file has no chat template (tokenizer.chat_template): make one with"
                " ChatTemplate(text)"
            )
        variables = {
            "messages": _checked(messages),
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            **kwargs,
        }
        try:
            return RENDERER.render(self.text, variables, self.time_limit)
        except RenderError as error:
            raise ChatTemplateError(str(error)) from None
        except (TypeError, ValueError, RecursionError) as error:
            raise ChatTemplateError(
                f"messages, tools and variables of a template are JSON data: {error}"
            ) from error


def chat_template_from_metadata(
    metadata: Mapping[str, Any], name: str | None = None
) -> ChatTemplate:
    """Reads the chat template of a GGUF file.

    A file without a template gives one that refuses to render.

    Args:
        metadata: the file's keys and values.
        name: a variant, `tokenizer.chat_template.NAME`; often "tool_use".

    Raises:
        ChatTemplateError: the variant is unknown; the message names the known ones.
    """
    key = "tokenizer.chat_template" + (f".{name}" if name else "")
    if name and key not in metadata:
        known = sorted(
            key.removeprefix("tokenizer.chat_template.")
            for key in metadata
            if key.startswith("tokenizer.chat_template.")
        )
        raise ChatTemplateError(
            f"the file has no chat template named {name!r}, its variants are {known}"
        )
    text = meta.string(metadata, key) if key in metadata else None
    return ChatTemplate(text, bos_token=_token(metadata, "bos"), eos_token=_token(metadata, "eos"))


def _token(metadata, name: str) -> str:
    """The text of a special token, "" where the file has none or it is no text."""
    key = "tokenizer.ggml.tokens"
    tokens = meta.strings(metadata, key) if key in metadata else []
    id = meta.token_id(metadata, f"tokenizer.ggml.{name}_token_id", len(tokens))
    if id is None:
        id = DEFAULT_IDS.get(meta.string(metadata, "tokenizer.ggml.model", ""), {}).get(name)
    token = tokens[id] if id is not None and id < len(tokens) else ""
    return token if isinstance(token, str) else ""


def _checked(messages) -> list[dict]:
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ChatTemplateError(
            f"messages are a list of {{'role': ..., 'content': ...}}, got {type(messages).__name__}"
        )
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ChatTemplateError(
                f"message {place} is {type(message).__name__}, expected a dict with 'role' and"
                " 'content'"
            )
        if not isinstance(message.get("role"), str):
            raise ChatTemplateError(
                f"message {place} has no 'role' (a string), only {sorted(map(str, message))}"
            )
        if "content" not in message and "tool_calls" not in message:
            raise ChatTemplateError(
                f"message {place} has no 'content', only {sorted(map(str, message))}"
            )
        if not isinstance(message.get("content"), (str, list, type(None))):
            raise ChatTemplateError(
                f"the content of message {place} is {type(message['content']).__name__}, expected a"
                " string or a list"
            )
    return [dict(message) for message in messages]
