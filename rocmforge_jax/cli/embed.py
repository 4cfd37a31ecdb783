"""The command `embed`."""

from typing import Any

from rocmforge_jax.cli import common

NAME = "embed"
HELP = "Print the vectors of texts, one JSON object a line: text, embedding."


def add_arguments(parser):
    parser.add_argument("file", metavar="FILE", help=f"{common.MODEL}; best a model of embeddings")
    parser.add_argument(
        "texts",
        type=common.text,
        nargs="*",
        metavar="TEXT",
        help="default: the lines of stdin, one text each",
    )
    parser.add_argument(
        "--pooling",
        choices=("none", "mean", "cls", "last", "rank"),
        help="how tokens become one vector (default: the pooling that the file names)",
    )
    parser.add_argument(
        "--no-normalize",
        dest="normalize",
        action="store_const",
        const=False,
        help="do not scale vectors to length 1 (--pooling rank never does)",
    )
    parser.add_argument(
        "--truncate", action="store_true", help="cut off the end of texts that are too long"
    )
    common.add_context_length(parser, "most tokens of a text")


def run(options):
    texts = options.texts or common.read_text("-").splitlines()
    if not texts:
        raise common.UsageError("stdin has no lines: give texts after the file, or one a line")
    common.prepare_jax(options.file)
    context_length = common.context_length(options)
    import rocmforge_jax

    lm = rocmforge_jax.load(options.file, context_length=context_length)
    with common.usage_errors():
        vectors: Any = lm.embed(
            texts,
            pooling=options.pooling,
            normalize=options.normalize,
            truncate=options.truncate,
        )
    for text, vector in zip(texts, vectors):
        common.print_json({"text": text, "embedding": vector.tolist()})
