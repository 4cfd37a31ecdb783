"""The command line: `rocmforge-jax COMMAND`, one module for each command.

Data goes to stdout, everything else to stderr. Exit codes: 0; 2 for what the user can put right
(usage, a file, a value); 130 after Ctrl-C; 1 for anything else.
"""

from rocmforge_jax.cli import streams


def main(argv: list[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: The words after the program's name. None takes the process's own.

    Returns:
        The exit code.
    """
    if argv is None:  # before the imports, which take a while
        streams.fill_closed()
    from rocmforge_jax.cli import program

    return program.run(argv)
