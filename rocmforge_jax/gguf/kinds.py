"""Recognises GGUF files that are not language models. Does not import JAX."""

from rocmforge_jax.gguf.reader import GGUFFile

_ADAPTER = "it is an adapter (LoRA), not a model: merge it into the model that it was made for"
_PROJECTOR = (
    "it is a projector (mmproj) for images or sound, not a model: load the model that it goes with"
)
_IMATRIX = "it is an importance matrix for quantising a model, not a model"
_CONTROL = "it is a control vector, not a model"
#: general.type -> description of the file. llama.cpp writes "model" into models.
_TYPES = {
    "adapter": _ADAPTER,
    "mmproj": _PROJECTOR,
    "clip-vision": _PROJECTOR,
    "imatrix": _IMATRIX,
    "controlvector": _CONTROL,
}
#: general.architecture -> description of the file.
_ARCHITECTURES = {"clip": _PROJECTOR, "controlvector": _CONTROL}
#: A key that only such a file has -> description of the file.
_KEYS = {"adapter.type": _ADAPTER, "imatrix.chunk_count": _IMATRIX, "imatrix.datasets": _IMATRIX}


def why_no_model(gguf: GGUFFile) -> str | None:
    """Returns why a file is not a language model, or None if it is one."""
    kind = gguf.metadata.get("general.type")
    known = _TYPES.get(kind) if isinstance(kind, str) else None
    known = known or _ARCHITECTURES.get(gguf.architecture or "")
    known = known or next((what for key, what in _KEYS.items() if key in gguf.metadata), None)
    if known:
        return known
    if not gguf.tensors and "tokenizer.ggml.model" in gguf.metadata:
        return "it holds a vocabulary and no weights: only load_tokenizer and `tokenize` read it"
    return None if gguf.architecture else "it has no general.architecture: it holds no model"
