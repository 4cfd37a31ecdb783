"""The command `perplexity`."""

import dataclasses

from rocmforge_jax.cli import common

NAME = "perplexity"
HELP = "How well a model predicts a text: perplexity, counted as llama.cpp counts it."


def add_arguments(parser):
    parser.add_argument("text", metavar="TEXT", help="a text file, - for stdin")
    parser.add_argument(
        "--model",
        "-m",
        default="demo",
        metavar="FILE",
        help=f"{common.MODEL} (default: the demo)",
    )
    parser.add_argument(
        "--window",
        type=int,
        metavar="N",
        help="the text is cut into windows of N tokens; the second half of each is predicted"
        " (default: 512, or the context if that is shorter)",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object: value, error, tokens, windows, window",
    )


def run(options):
    text = common.read_text(options.text)
    common.prepare_jax(options.model)
    import rocmforge_jax

    lm = rocmforge_jax.load(options.model)
    with common.usage_errors():  # for an invalid window or a text that is too short
        result = lm.perplexity(text, window=options.window)
    if options.json:
        common.print_json(dataclasses.asdict(result))
    else:
        print(result)
