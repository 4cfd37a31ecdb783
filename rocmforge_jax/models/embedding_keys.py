"""Reads the settings of embedding models, for every family: causality, pooling and heads."""

import dataclasses

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.models.config import DecoderConfig, LayerConfig
from rocmforge_jax.models.embedding_head import Classifier, EmbeddingHead
from rocmforge_jax.models.keys import KeyReader
from rocmforge_jax.models.mixers import Attention
from rocmforge_jax.nn import POOLINGS

#: Dense layers after pooling, in order.
_DENSE = ("dense_2", "dense_3")


def with_embedding_keys(keys: KeyReader, config: DecoderConfig) -> DecoderConfig:
    """Applies a file's settings for embeddings: causality, pooling and the layers after pooling.

    A family may have set a classifier already. Its activation and softmax are kept. The other
    fields come from the file, and sizes from the shapes of its tensors.
    """
    if not keys.flag("attention.causal", True):
        layers = [_without_mask(keys, i, layer) for i, layer in enumerate(config.layers)]
        config = dataclasses.replace(config, layers=tuple(layers))
    head = EmbeddingHead(_dense(keys, config.width), _classifier(keys, config))
    kind = _pooling(keys, "pooling_type")
    return dataclasses.replace(config, pooling=kind, embedding_head=head)


def _without_mask(keys: KeyReader, i: int, layer: LayerConfig) -> LayerConfig:
    """Returns the layer without a causal mask; raises GGUFError if the mixer does not allow it."""
    mixer = layer.mixer
    if mixer is None or (isinstance(mixer, Attention) and not mixer.causal):
        return layer
    why = None
    if not isinstance(mixer, Attention):
        why = f"layer {i} is a {type(mixer).__name__}, which only looks back"
    elif mixer.window is not None or mixer.chunk is not None or mixer.source is not None:
        why = f"layer {i} has a window, chunks or shared keys, which only look back"
    if why is not None or not isinstance(mixer, Attention):
        raise GGUFError(
            f"{keys.path}: {keys.architecture}.attention.causal is False, so tokens see later"
            f" ones: not supported, because {why}"
        )
    mixer = dataclasses.replace(mixer, causal=False, lends=False)
    return dataclasses.replace(layer, mixer=mixer)


def _pooling(keys: KeyReader, key: str) -> str | None:
    number = keys.integer(key, -1, low=0, high=len(POOLINGS) - 1)
    return None if number < 0 else POOLINGS[number]


def _rows(keys: KeyReader, name: str, width: int) -> int | None:
    """Returns the number of outputs of a layer with `width` inputs; None if the file has none."""
    tensor = keys.tensors.get(f"{name}.weight")
    if tensor is None or tensor.shape[-1] != width:
        return None
    return 1 if len(tensor.shape) == 1 else tensor.shape[0]


def _dense(keys: KeyReader, width: int) -> tuple[tuple[str, int], ...]:
    found = []
    for name in _DENSE:
        if (outputs := _rows(keys, name, width)) is not None:
            found.append((name, outputs))
            width = outputs
    return tuple(found)


def _classifier(keys: KeyReader, config: DecoderConfig) -> Classifier | None:
    """Reads the classifier. Without mean pooling, its input is the first token (last if causal)."""
    template = config.embedding_head.classifier or Classifier()
    kind = _pooling(keys, "classifier.pooling_type") or template.pooling
    if kind != "mean":
        kind = "last" if config.causal else "cls"
    hidden = _rows(keys, "cls", config.width)
    outputs = _rows(keys, "cls.output", hidden or config.width)
    if hidden is None and outputs is None:
        return None
    norm = hidden is not None and "cls.norm.weight" in keys.tensors
    made = dict(pooling=kind, hidden=hidden, norm=norm, outputs=outputs)
    return dataclasses.replace(template, **made)
