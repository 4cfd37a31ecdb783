"""Talk with a model that has a chat template. Ctrl-C stops an answer, Ctrl-D ends."""

import sys

from rocmforge_jax.cli import common

NAME = "chat"


def add_arguments(parser):
    parser.add_argument(
        "--model",
        required=True,
        metavar="FILE",
        help="a GGUF file, or owner/repository/file.gguf of the hub",
    )
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    common.add_generation_arguments(parser)


def run(options):
    common.prepare_jax(options.model)
    generation = common.generation_options(options)
    import rocmforge_jax
    from rocmforge_jax.gguf import open_gguf
    from rocmforge_jax.locate import resolve

    path = resolve(options.model)
    if "tokenizer.chat_template" not in open_gguf(path).metadata:
        raise common.UsageError(
            f"{path} has no chat template (tokenizer.chat_template): it continues texts, use"
            " `generate`"
        )
    lm = rocmforge_jax.load(path)
    messages = [{"role": "system", "content": options.system}] if options.system else []
    for text in _questions():
        messages.append({"role": "user", "content": text})
        messages.append({"role": "assistant", "content": _answer(lm, messages, generation)})


def _questions():
    """Lines of the user, empty ones left out.

    A prompt on stderr asks for them where stdin is a terminal.
    """
    while True:
        try:
            if sys.stdin.isatty():
                print("> ", end="", file=sys.stderr, flush=True)
            with common.usage_errors():  # stdin that is no text
                line = sys.stdin.readline()
        except KeyboardInterrupt:  # forgets the line, as a shell does
            print(file=sys.stderr)
            continue
        if not line:
            return
        if line.strip():
            yield line.strip()


def _answer(lm, messages, generation) -> str:
    """Print an answer as it comes; Ctrl-C ends it where it is."""
    pieces = []
    try:
        with common.usage_errors():
            stream = lm.chat(messages, stream=True, **generation)
        for piece in stream:
            print(piece, end="", flush=True)
            pieces.append(piece)
    except KeyboardInterrupt:
        pass
    print(flush=True)
    return "".join(pieces)
