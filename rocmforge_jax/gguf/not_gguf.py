"""What a file is that is not GGUF."""

from pathlib import Path

_BEGINNINGS = {
    b"version https://git-lfs": (
        "it is a Git LFS pointer: fetch the file itself with `git lfs pull`"
    ),
    b"PK\x03\x04": "it is a zip archive, such as a PyTorch checkpoint or .npz",
    b"\x80\x02": "it is a Python pickle, such as an old PyTorch checkpoint",
    b"<!doctype": "it is a web page: the download gave HTML instead of the file",
    b"<html": "it is a web page: the download gave HTML instead of the file",
    b"<?xml": "it is an XML document: the download gave an error message instead of the file",
    b"\x89HDF": "it is an HDF5 file",
    b"\x1f\x8b": "it is compressed with gzip: unpack it first",
    b"\x28\xb5\x2f\xfd": "it is compressed with zstd: unpack it first",
    b"lmgg": "it is a GGML file, from before GGUF: convert the model again",
    b"fmgg": "it is a GGMF file, from before GGUF: convert the model again",
    b"tjgg": "it is a GGJT file, from before GGUF: convert the model again",
    b"algg": "it is a GGLA adapter, from before GGUF: convert it again",
}


def looks_like(path: Path) -> str:
    """Say what a file is by its first bytes, as far as that is known."""
    with open(path, "rb") as file:
        head = file.read(32)
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 2**32:
        return "it is a safetensors file: convert the model to GGUF"
    for beginning, what in _BEGINNINGS.items():
        if head.lstrip().lower().startswith(beginning.lower()):
            return what
    return f"it begins with {head[:8]!r}"
