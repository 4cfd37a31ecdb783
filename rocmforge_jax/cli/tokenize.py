"""The command `tokenize`."""

from rocmforge_jax.cli import common
from rocmforge_jax.locate import resolve
from rocmforge_jax.text import load_tokenizer

NAME = "tokenize"
HELP = "Show the tokens of a text, one a line: id and bytes."


def add_arguments(parser):
    parser.add_argument("file", metavar="FILE", help=f"{common.MODEL}; it needs no weights")
    parser.add_argument("text", type=common.text, metavar="TEXT", help="- reads stdin")
    parser.add_argument(
        "--add-special", action="store_true", help="add the tokens that begin and end a text"
    )
    parser.add_argument(
        "--parse-special", action="store_true", help="read control tokens written in the text"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object: ids, pieces")


def run(options):
    tokenizer = load_tokenizer(resolve(options.file))
    text = common.read_text("-") if options.text == "-" else options.text
    with common.usage_errors():
        ids = tokenizer.encode(
            text, add_special=options.add_special, parse_special=options.parse_special
        )
    pieces = [tokenizer.piece(id).decode("utf-8", "backslashreplace") for id in ids]
    if options.json:
        common.print_json({"ids": ids, "pieces": pieces})
        return
    for id, piece in zip(ids, pieces):
        print(f"{id:>7}  {piece!r}")
