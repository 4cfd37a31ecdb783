"""What is wrong with a file."""


class GGUFError(ValueError):
    """Raised for a file that is not valid GGUF.

    The message gives the file, what is wrong, the byte, and both numbers.
    """
