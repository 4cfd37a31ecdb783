"""The command `chat`."""

import io
import sys

from rocmforge_jax.cli import common, interrupts
from rocmforge_jax.cli.flags import in_flags

NAME = "chat"
HELP = "Talk with a model that has a chat template. Ctrl-C stops an answer, Ctrl-D ends."


def add_arguments(parser):
    parser.add_argument(
        "--model",
        "-m",
        required=True,
        metavar="FILE",
        help=common.MODEL,
    )
    parser.add_argument("--system", type=common.text, metavar="TEXT", help="the system message")
    parser.add_argument(
        "--chat-template",
        metavar="FILE",
        help="a Jinja template in place of the model's own",
    )
    common.add_context_length(parser)
    common.add_generation_arguments(parser)


def run(options):
    common.prepare_jax(options.model)
    generation = common.generation_options(options)
    context_length = common.context_length(options)
    import rocmforge_jax
    from rocmforge_jax.locate import resolve

    path = resolve(options.model)
    messages = [{"role": "system", "content": options.system}] if options.system else []
    template = _template(path, options.chat_template, messages)
    lm = rocmforge_jax.load(path, context_length=context_length)
    lm.chat_template = template
    for text in _questions():
        messages = _turn(lm, messages, text, generation)


def _template(path, file: str | None, messages):
    """Returns the template of the model or of a file, tested before the model is loaded."""
    from rocmforge_jax.gguf import open_gguf
    from rocmforge_jax.text import ChatTemplateError, chat_template_from_metadata

    metadata = dict(open_gguf(path).metadata)
    with common.usage_errors():
        if file is not None:
            metadata["tokenizer.chat_template"] = common.read_text(file)
        template = chat_template_from_metadata(metadata)
    if template.text is None:
        raise _unusable(f"{file or path} has no chat template (tokenizer.chat_template)")
    try:
        template.render([*messages, {"role": "user", "content": "hi"}])
    except ChatTemplateError as error:
        raise _unusable(f"{file or path}: {error}") from error
    return template


def _unusable(what: str) -> common.UsageError:
    return common.UsageError(
        f"{what}: give a template with --chat-template FILE, or continue texts with `generate`"
    )


def _turn(lm, messages: list, text: str, generation: dict) -> list:
    """Answers a line of the user.

    If a line cannot be answered, an error is printed and the conversation stays unchanged.

    Returns:
        The conversation, without old turns that no longer fit into the context.
    """
    from rocmforge_jax.text import ChatTemplateError

    asked, pieces = [*messages, {"role": "user", "content": text}], []
    try:
        kept = lm.fit_messages(asked, max_tokens=generation["max_tokens"])
        stream = lm.chat(kept, stream=True, **generation)
        _say_dropped(asked, kept)
        asked = kept
        with interrupts.noted() as interrupted:
            for piece in stream:
                print(piece, end="", flush=True)
                pieces.append(piece)
                if interrupted:
                    break
    except KeyboardInterrupt:  # keeps the partial answer
        pass
    except ChatTemplateError as error:
        raise _unusable(str(error)) from error
    except ValueError as error:
        _say(f"error: {error}")
        return messages
    print(flush=True)
    return [*asked, {"role": "assistant", "content": "".join(pieces)}]


def _say_dropped(before: list, after: list):
    turns = sum(message["role"] == "user" for message in before) - sum(
        message["role"] == "user" for message in after
    )
    if turns:
        what = "the oldest turn" if turns == 1 else f"the {turns} oldest turns"
        _say(f"the context is full: dropped {what} of the conversation")


def _say(text: str):
    print(f"rocmforge-jax: {in_flags(text)}", file=sys.stderr)


def _questions():
    """Yields the user's lines, except empty ones.

    On a terminal, a prompt is printed on stderr first. A line that is not UTF-8 prints an error.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    while True:
        try:
            if sys.stdin.isatty():
                print("> ", end="", file=sys.stderr, flush=True)
            with interrupts.raised():
                line = sys.stdin.readline()
        except KeyboardInterrupt:  # discards the line, like a shell
            print(file=sys.stderr)
            continue
        if not line:
            return
        if text := _decoded(line).strip():
            yield text


def _decoded(line: str) -> str:
    """Decodes a line of stdin, in which Python represents undecodable bytes as surrogates.

    For a line that is not UTF-8, prints an error with the byte and returns "".
    """
    if not any("\udc80" <= character <= "\udcff" for character in line):
        return line
    raw = line.encode(sys.stdin.encoding or "utf-8", "surrogateescape")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        _say(f"error: the line is not UTF-8 text: byte {error.start} is 0x{byte:02x}")
        return ""
