"""Recognises other file types, for the error message about a file that is not GGUF."""

from pathlib import Path

_OLD = "from before GGUF: convert the model again"
_PAGE = "it is a web page: the download gave HTML instead of the file"
_PICKLE = "it is a Python pickle, such as an old PyTorch checkpoint: convert the model to GGUF"
#: The first bytes of a file, in lower case -> description of the file.
_BEGINNINGS = {
    b"version https://git-lfs": (
        "it is a Git LFS pointer: fetch the file itself with `git lfs pull`"
    ),
    b"pk\x03\x04": (
        "it is a zip archive, such as a PyTorch checkpoint or .npz: convert the model to GGUF, or"
        " unpack it if it holds one"
    ),
    **{b"\x80" + bytes([protocol]): _PICKLE for protocol in range(2, 6)},
    b"<!doctype": _PAGE,
    b"<html": _PAGE,
    b"<?xml": "it is an XML document: the download gave an error message instead of the file",
    b"{": "it is JSON, such as a configuration or an error message instead of the file",
    b"\x89hdf": "it is an HDF5 file: convert the model to GGUF",
    b"\x1f\x8b": "it is compressed with gzip: unpack it first",
    b"\x28\xb5\x2f\xfd": "it is compressed with zstd: unpack it first",
    b"bzh": "it is compressed with bzip2: unpack it first",
    b"\xfd7zxz": "it is compressed with xz: unpack it first",
    b"7z\xbc\xaf\x27\x1c": "it is a 7z archive: unpack it first",
    b"rar!\x1a": "it is a RAR archive: unpack it first",
    b"lmgg": f"it is a GGML file, {_OLD}",
    b"fmgg": f"it is a GGMF file, {_OLD}",
    b"tjgg": f"it is a GGJT file, {_OLD}",
    b"algg": "it is a GGLA adapter, from before GGUF: convert it again",
    bytes(16): "it begins with zeros: the download is not complete",
}


def looks_like(path: Path) -> str:
    """Describes a file by its first bytes."""
    with open(path, "rb") as file:
        head = file.read(64)
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 2**32:
        return "it is a safetensors file: convert the model to GGUF"
    for beginning, what in _BEGINNINGS.items():
        if head.lstrip().lower().startswith(beginning):
            return what
    if head.isascii() and head.decode("ascii").replace("\n", " ").isprintable():
        return f"it is text, such as an error message instead of the file: {head!r}"
    return f"it begins with {head[:8]!r}"
