"""Reads the attention of a file's layers."""

import dataclasses

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.models.keys import KeyReader
from rocmforge_jax.models.mixers import Attention
from rocmforge_jax.models.read_rope import rope


def attentions(keys: KeyReader, interleaved: bool, **changes) -> list[Attention | None]:
    """Reads the attention of each layer; None for a layer without heads.

    Args:
        keys: The keys of the file.
        interleaved: See `llama_like`.
        **changes: Fields of every `Attention` that differ from the file.
    """
    heads = keys.integers("attention.head_count")
    width = changes.get("head_width") or head_width(keys)
    if keys.get("attention.head_count_kv") is None:
        kv_heads = heads
    else:
        kv_heads = keys.integers("attention.head_count_kv")
    rotary = rope(keys, width, interleaved)

    def of_layer(i):
        fused = keys.has(i, "attn_qkv.weight")
        made = Attention(heads[i], kv_heads[i], width, rotary, fused_qkv=fused)
        return dataclasses.replace(made, **changes)

    return [of_layer(i) if heads[i] and kv_heads[i] else None for i in range(keys.blocks)]


def head_width(keys: KeyReader) -> int:
    """Returns the width of a head. Default: the model's width divided by the number of heads."""
    width, count = keys.integer("embedding_length"), max(keys.integers("attention.head_count"))
    if not count:
        raise GGUFError(
            f"{keys.path}: {keys.architecture}.attention.head_count is 0 in all"
            f" {keys.layers} layers"
        )
    shared = None if width % count else width // count
    given = keys.integer("attention.key_length", shared or 0)
    if not given:
        raise GGUFError(
            f"{keys.path}: width {width} is not a multiple of {count} heads, and there is no"
            " attention.key_length"
        )
    for name in ("value_length", "key_length_swa", "value_length_swa"):
        if (other := keys.integer(f"attention.{name}", given)) != given:
            raise GGUFError(
                f"{keys.path}: {keys.architecture}.attention.{name}: keys are {given} wide and"
                f" {_WIDTHS[name]} {other}: not supported"
            )
    return given


#: Keys with other widths, which must equal the width of the keys -> their names in messages.
_WIDTHS = {
    "value_length": "values",
    "key_length_swa": "those of layers with a window",
    "value_length_swa": "values of layers with a window",
}
