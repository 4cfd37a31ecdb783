"""Recognises other file types, for the error message about a file that is not GGUF."""

from pathlib import Path

_OLD = "old llama.cpp file from before GGUF: convert the model again"
_PAGE = "a web page: the download gave HTML instead of the file"
_PICKLE = "a Python pickle, such as an old PyTorch checkpoint: convert the model to GGUF"
#: The first bytes of a file, in lower case -> description of the file.
_BEGINNINGS = {
    b"version https://git-lfs": ("a Git LFS pointer: fetch the file itself with `git lfs pull`"),
    b"pk\x03\x04": (
        "a zip archive, such as a PyTorch checkpoint or .npz: convert the model to GGUF, or"
        " unpack it if it holds one"
    ),
    **{b"\x80" + bytes([protocol]): _PICKLE for protocol in range(2, 6)},
    b"<!doctype": _PAGE,
    b"<html": _PAGE,
    b"<?xml": "an XML document: the download gave an error message instead of the file",
    b"{": "JSON: it may be a configuration, or an error message instead of the file",
    b"\x89hdf": "an HDF5 file: convert the model to GGUF",
    b"\x1f\x8b": "compressed with gzip: unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it first",
    b"bzh": "compressed with bzip2: unpack it first",
    b"\xfd7zxz": "compressed with xz: unpack it first",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it first",
    b"rar!\x1a": "a RAR archive: unpack it first",
    **{name: f"an {_OLD}" for name in (b"lmgg", b"ggml", b"fmgg", b"ggmf")},
    **{name: f"an {_OLD}" for name in (b"tjgg", b"ggjt")},
    **{name: "an adapter from before GGUF: convert it again" for name in (b"algg", b"ggla")},
}


def refusal(path: Path) -> str:
    """Returns the message for a file that is not GGUF, by its first bytes."""
    with open(path, "rb") as file:
        head = file.read(64)
    if not any(head[:16]):
        return f"{path} is not a GGUF file: it begins with zeros, so the download is not complete"
    what, _, remedy = (_type(head) or "").partition(": ")
    if what:
        return f"{path} is {what}, not a GGUF file: {remedy}"
    return f"{path} is not a GGUF file, which begins with b'GGUF': it begins with {head[:8]!r}"


def _type(head: bytes) -> str | None:
    """Describes a file by its first bytes, with a remedy after a colon; None if it is unknown."""
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 2**32:
        return "a safetensors file: convert the model to GGUF"
    for beginning, what in _BEGINNINGS.items():
        if head.lstrip().lower().startswith(beginning):
            return what
    if head.isascii() and head.decode("ascii").replace("\n", " ").isprintable():
        return f"text: it may be an error message instead of the file, {head!r}"
    return None
