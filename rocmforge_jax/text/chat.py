"""Renders chat messages with the prompt template that a model was trained on."""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rocmforge_jax.arguments import flag, named_values
from rocmforge_jax.text import metadata as meta
from rocmforge_jax.text.continuation import continued, cut_at_end
from rocmforge_jax.text.marks import (
    MARK,
    looks_like_control,
    mark_all,
    marker,
    shield,
    unescaped,
)
from rocmforge_jax.text.messages import ChatTemplateError, plain, read_messages
from rocmforge_jax.text.renderer import RENDERER, RenderError
from rocmforge_jax.text.special_ids import DEFAULT_IDS
from rocmforge_jax.text.surrogates import check_data, check_text
from rocmforge_jax.text.tokenizer import Tokenizer

TEMPLATE_LIMIT = 1 << 20  # characters; the longest template in use has about 30,000
TIME_LIMIT = 2.0  # seconds; the slowest template in use takes milliseconds
_DEFAULT = "default"  # Hugging Face's name for an unnamed template
_KEY = "tokenizer.chat_template"


class ChatTemplate:
    """One or several named Jinja templates in Hugging Face's format.

    They are rendered in a separate process with limits on time, memory and output.
    """

    def __init__(
        self,
        text: str | Mapping[str, str] | Sequence[Mapping[str, str]] | None,
        *,
        bos_token: str = "",
        eos_token: str = "",
        time_limit: float = TIME_LIMIT,
    ):
        """Stores and checks the templates.

        Args:
            text: A template; or several, as {name: template} or as Hugging Face's list of {"name":
                ..., "template": ...}. "tool_use" renders messages with tools and "default" all
                others. None or blank text means no template.
            bos_token: A variable of the template.
            eos_token: A variable of the template.
            time_limit: The time limit of one rendering in seconds.

        Raises:
            TypeError: `text` has another type.
            ChatTemplateError: A template is too long or not valid Unicode.
        """
        texts = {
            name: template
            for name, template in _by_name(text).items()
            if template is not None and template.strip()
        }
        for template in texts.values():
            check_text("the chat template", template, ChatTemplateError)
            if len(template) > TEMPLATE_LIMIT:
                raise ChatTemplateError(
                    f"the chat template has {len(template)} characters, the limit is"
                    f" {TEMPLATE_LIMIT}"
                )
        self.text = texts.pop(_DEFAULT, None)
        self.variants = texts
        self.bos_token, self.eos_token, self.time_limit = bos_token, eos_token, time_limit

    def __repr__(self) -> str:
        return (
            "ChatTemplate(None)"
            if self.text is None
            else f"ChatTemplate({len(self.text)} characters)"
        )

    def render(
        self,
        messages: Sequence[Any],
        add_generation_prompt: bool | None = None,
        tools: Sequence[Any] | None = None,
        *,
        continue_final_message: bool | str = False,
        variables: Mapping[str, Any] | None = None,
        **kwargs,
    ) -> str:
        """Renders messages as text.

        In the text, control tokens spelled in messages look like the template's. Use `encode` to
        keep them apart. To encode the text yourself, pass `parse_special=True`.

        Args:
            messages: [{"role": "user", "content": "..."}, ...] or objects with `model_dump`, in the
                format of OpenAI's API. A content is a text, a list of parts {"type": "text",
                "text": ...}, or None next to tool calls. Arguments of tool calls are objects or
                JSON text.
            add_generation_prompt: Whether to end with the start of the assistant's answer. Default:
                True, unless `continue_final_message` is set.
            tools: JSON schemas of functions.
            continue_final_message: Whether to end within the last message, so that the model
                continues it. A string names the field to continue, such as "reasoning_content".
            variables: Further variables of the template, such as `enable_thinking`, with any names.
            kwargs: Further variables whose names are not parameters of this method.

        Raises:
            ChatTemplateError: The template is missing, fails, or refuses the messages.
        """
        given = {"add_generation_prompt": add_generation_prompt, "tools": tools}
        return self._render(
            messages, None, kwargs | _set(given) | _variables(variables), continue_final_message
        )

    def encode(
        self,
        messages: Sequence[Any],
        tokenizer: Tokenizer,
        *,
        parse_special_in_messages: bool = False,
        continue_final_message: bool | str = False,
        variables: Mapping[str, Any] | None = None,
        **kwargs,
    ) -> list[int]:
        """Renders messages and encodes the prompt.

        Control tokens spelled in tools, variables or messages of any role but the assistant stay
        plain text. So no such text can end or begin a turn.

        Args:
            messages: As for `render`.
            tokenizer: The tokenizer of the model.
            parse_special_in_messages: Whether to read control tokens wherever they are spelled.
            continue_final_message: As for `render`.
            variables: As for `render`. May contain "tools" and "add_generation_prompt".
            kwargs: As for `render`. May contain "tools" and "add_generation_prompt".

        Raises:
            ChatTemplateError: The template is missing, fails, or refuses the messages.
        """
        reads = flag("parse_special_in_messages", parse_special_in_messages)
        mark = None if reads else marker(self._control_tokens(tokenizer))
        given = kwargs | _variables(variables)
        text = self._render(messages, mark, given, continue_final_message)
        return tokenizer.encode(text, add_special=True, parse_special=True, mark=mark and MARK)

    def _control_tokens(self, tokenizer: Tokenizer) -> tuple[str, ...]:
        """Returns the tokens that could build turns, without white space and user-defined words."""
        templates = "\0".join(filter(None, (self.text, *self.variants.values())))
        return tuple(
            token
            for token, id in tokenizer.special.items()
            if tokenizer.is_control(id)
            or looks_like_control(token)
            or (token in templates and not token.isspace())
        )

    def _render(
        self,
        messages,
        mark: Callable[[str], str] | None,
        variables: dict[str, Any],
        continue_final_message: bool | str,
    ) -> str:
        """Renders messages; the variables include "tools" and "add_generation_prompt"."""
        if not isinstance(continue_final_message, str):
            continue_final_message = flag("continue_final_message", continue_final_message)
        add_generation_prompt = variables.pop("add_generation_prompt", None)
        if add_generation_prompt is not None:
            add_generation_prompt = flag("add_generation_prompt", add_generation_prompt)
        if add_generation_prompt and continue_final_message:
            raise ChatTemplateError(
                "continue_final_message and add_generation_prompt are not compatible: one goes on"
                " with the last message, the other begins a new one"
            )
        if add_generation_prompt is None:
            add_generation_prompt = not continue_final_message
        tools, final = plain(variables.pop("tools", None)) or None, ""
        template = self._chosen(tools)
        data = read_messages(messages, knows_developer="developer" in template)
        variables = {"tools": tools, **plain(variables)}
        with _json_errors():
            # A surrogate in the caller's data could be mistaken for the mark.
            for place, message in enumerate(data):
                check_data(f"message {place}", message, ChatTemplateError)
            for name, value in variables.items():
                check_data(f"the variable {name!r}", value, ChatTemplateError)
        if mark:
            data, variables = _marked(data, variables, mark)
        if continue_final_message:
            data, final = continued(data, continue_final_message, template)
        own = {"bos_token": self.bos_token, "eos_token": self.eos_token}
        given = {"messages": data, "add_generation_prompt": add_generation_prompt}
        with _json_errors():
            rendered = RENDERER.render(template, own | variables | given, self.time_limit)
        if mark:
            rendered = unescaped(rendered)
        return cut_at_end(rendered, final) if continue_final_message else rendered

    def _chosen(self, tools) -> str:
        """Returns the template for messages with or without tools, selected as in transformers."""
        text = self.variants.get("tool_use", self.text) if tools else self.text
        if text is not None:
            return text
        if self.variants:
            raise ChatTemplateError(
                f"the chat templates are named {sorted(self.variants)} and none is the default:"
                " choose one with chat_template_from_metadata(metadata, name)"
            )
        raise ChatTemplateError(
            f"the file has no chat template ({_KEY}): make one with ChatTemplate(text)"
        )


def chat_template_from_metadata(
    metadata: Mapping[str, Any], name: str | None = None
) -> ChatTemplate:
    """Reads the chat templates of a GGUF file.

    For a file without a template, the result raises ChatTemplateError when it renders.

    Args:
        metadata: The file's key-value pairs.
        name: Use only the template `tokenizer.chat_template.NAME`. Default: all templates, so that
            "tool_use" renders messages with tools.

    Raises:
        ChatTemplateError: The name is unknown; the message lists the known ones.
    """
    make = functools.partial(
        ChatTemplate, bos_token=_token(metadata, "bos"), eos_token=_token(metadata, "eos")
    )
    keys = {key.removeprefix(f"{_KEY}."): key for key in metadata if key.startswith(f"{_KEY}.")}
    if name and name not in keys:
        raise ChatTemplateError(
            f"the file has no chat template named {name!r}, its variants are {sorted(keys)}"
        )
    if name:
        return make(meta.string(metadata, keys[name]))
    if _KEY in metadata:
        keys[_DEFAULT] = _KEY
    return make({name: meta.string(metadata, key) for name, key in keys.items()})


def _by_name(text: Any) -> dict[str, str | None]:
    """Returns the templates by name."""
    named: Any = {_DEFAULT: text} if text is None or isinstance(text, str) else text
    if isinstance(text, list | tuple) and all(_is_named(item) for item in text):
        named = {item["name"]: item["template"] for item in text}
    if not isinstance(named, Mapping):
        raise TypeError(
            "a chat template is a text, None, {name: text} or a list of {'name': ..., 'template':"
            f" ...}}, got {type(text).__name__} {repr(text)[:80]}"
        )
    for name, template in named.items():
        if not isinstance(name, str) or not isinstance(template, str | None):
            raise TypeError(
                f"the chat template {name!r} must be a text or None, under a name that is a text,"
                f" got {type(template).__name__}"
            )
    return dict(named)


def _is_named(item: Any) -> bool:
    return isinstance(item, Mapping) and {"name", "template"} <= set(item)


def _variables(variables: Mapping[str, Any] | None) -> dict[str, Any]:
    """Checks the `variables` argument of a rendering."""
    found = named_values("variables", variables)
    if "messages" in found:
        raise TypeError("variables of a template cannot hold 'messages', which have a parameter")
    return found


def _set(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


@contextlib.contextmanager
def _json_errors():
    """Converts errors of the renderer, and of data that is not JSON, to ChatTemplateError."""
    try:
        yield
    except ChatTemplateError:
        raise
    except RenderError as error:
        raise ChatTemplateError(unescaped(str(error)).replace(MARK, "")) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ChatTemplateError(
            f"messages, tools and variables of a template are JSON data: {error}"
        ) from error


def _marked(messages: list[dict], variables: dict, mark: Callable[[str], str]):
    """Marks control tokens in everything but the assistant's messages and the template's tokens."""
    own = ("bos_token", "eos_token")
    return [
        mark_all(message, shield if message["role"] == "assistant" else mark)
        for message in messages
    ], {name: value if name in own else mark_all(value, mark) for name, value in variables.items()}


def _token(metadata, name: str) -> str:
    """Returns the text of a special token, or "" if the file has none or it is not UTF-8."""
    key = "tokenizer.ggml.tokens"
    tokens = meta.strings(metadata, key) if key in metadata else []
    id = meta.token_id(metadata, f"tokenizer.ggml.{name}_token_id", len(tokens))
    if id is None:
        id = DEFAULT_IDS.get(meta.string(metadata, "tokenizer.ggml.model", ""), {}).get(name)
    token = tokens[id] if id is not None and id < len(tokens) else ""
    return token if isinstance(token, str) else ""
