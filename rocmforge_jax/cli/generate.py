"""The command `generate`."""

import argparse
import dataclasses
import sys
from typing import Any

from rocmforge_jax.cli import common
from rocmforge_jax.settings import plain_terminal

NAME = "generate"
HELP = "Continue a text with a model."


def add_arguments(parser):
    where = f"{common.MODEL} (default: the demo)"
    parser.add_argument("--model", "-m", default="demo", metavar="FILE", help=where)
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument(
        "--prompt", "-p", type=common.text, metavar="TEXT", help="the text to continue"
    )
    prompt.add_argument(
        "--prompt-file", "-f", metavar="FILE", help="read the prompt from a file, - for stdin"
    )
    common.add_context_length(parser)
    common.add_generation_arguments(parser)
    output = parser.add_mutually_exclusive_group()
    output.add_argument(
        "--echo",
        action=argparse.BooleanOptionalAction,
        help="print the prompt before its continuation (default: only on a terminal)",
    )
    output.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object: text, ids, finish_reason, logprobs, prompt_tokens, pieces",
    )


def run(options):
    prompt = (
        options.prompt if options.prompt_file is None else common.read_text(options.prompt_file)
    )
    common.prepare_jax(options.model)
    generation = common.generation_options(options)
    context_length = common.context_length(options)
    import rocmforge_jax

    lm = rocmforge_jax.load(options.model, context_length=context_length)
    with common.usage_errors():  # the prompt is checked before any computation
        answer: Any = lm.generate(prompt, stream=not options.json, **generation)
    if options.json:
        fields = dataclasses.asdict(answer)
        del fields["top_logprobs"]  # the command has no option for them
        common.print_json(fields)
        return
    if sys.stdout.isatty() if options.echo is None else options.echo:
        print(_dimmed(prompt), end="", flush=True)
    for piece in answer:
        print(piece, end="", flush=True)
    print()


def _dimmed(prompt: str) -> str:
    """Returns the prompt, dimmed if the terminal supports it."""
    plain = not sys.stdout.isatty() or plain_terminal()
    return prompt if plain else f"\033[2m{prompt}\033[0m"
