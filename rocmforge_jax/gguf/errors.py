"""What is wrong with a file."""


class GGUFError(ValueError):
    """A file that is no valid GGUF: the message says which file, what is wrong, at which byte, and
    both numbers.
    """
