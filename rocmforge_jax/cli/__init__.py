"""The command line: `rocmforge-jax COMMAND`, with one module per command.

Data goes to stdout, everything else to stderr. Exit codes: 0 for success; 2 for a user error
(usage, file, value); 130 after Ctrl-C and 143 after SIGTERM; 1 for any other failure.
"""

from rocmforge_jax.cli import interrupts, streams


def main(argv: list[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: The arguments after the program's name. None uses the arguments of the process and
            makes signals end the process at once. Otherwise Ctrl-C raises KeyboardInterrupt.

    Returns:
        The exit code.
    """
    if argv is None:  # before the imports, which take a while
        streams.fill_closed()
        interrupts.end_at_once()
    from rocmforge_jax.cli import program

    return program.run(argv)
