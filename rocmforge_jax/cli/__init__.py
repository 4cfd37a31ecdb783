"""The command line: `rocmforge-jax COMMAND`, one module for each command.

Data goes to stdout, everything else to stderr. Exit codes: 0; 2 for what the user can put right
(usage, a file, a value); 130 and 143 after Ctrl-C and SIGTERM; 1 for anything else.
"""

from rocmforge_jax.cli import interrupts, streams


def main(argv: list[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: The words after the program's name. None takes the process's own and makes signals
            end the process; otherwise Ctrl-C raises KeyboardInterrupt.

    Returns:
        The exit code.
    """
    if argv is None:  # before the imports, which take a while
        streams.fill_closed()
        interrupts.end_at_once()
    from rocmforge_jax.cli import program

    return program.run(argv)
