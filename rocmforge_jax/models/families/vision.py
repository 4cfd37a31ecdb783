"""The text models of families that can also process images."""

import dataclasses
import math

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.models.families.shared import POST_ATTENTION_NORM, POST_NORMS, norm_of_heads
from rocmforge_jax.models.keys import KeyReader
from rocmforge_jax.models.llama_like import llama_like
from rocmforge_jax.models.read_attention import head_width
from rocmforge_jax.models.read_feed_forward import read_routing
from rocmforge_jax.models.read_rope import rope
from rocmforge_jax.nn import RopeConfig

#: The key with the number of a head's pairs that belong to each of four coordinates.
SECTIONS = "rope.dimension_sections"


def with_sections(keys: KeyReader, config: RopeConfig, *, interleaved: bool) -> RopeConfig:
    """Returns a rotary embedding for text whose pairs are divided among four coordinates (M-RoPE).

    The first three coordinates are time, height and width. In a text they are equal, so their pairs
    rotate as usual. The fourth coordinate is 0 in a text, as in llama.cpp, so its pairs do not
    rotate.

    Args:
        keys: The keys of the file.
        config: The rotary embedding without sections.
        interleaved: Whether successive pairs cycle through the first three sections.
    """
    sections = _sections(keys)

    def stands_still(pair: int) -> bool:
        place = pair % sum(sections)
        if interleaved:
            return place >= 3 * sections[place % 3]
        return place >= sum(sections[:3])

    pairs = range(config.width // 2)
    if not any(map(stands_still, pairs)):
        return config
    factors = config.factors or (1.0,) * len(pairs)
    still = tuple(math.inf if stands_still(pair) else factors[pair] for pair in pairs)
    return dataclasses.replace(config, factors=still)


def _sections(keys: KeyReader) -> tuple[int, ...]:
    """Reads the sizes of the four sections; raises GGUFError if all are 0."""
    sections = keys.numbers(SECTIONS, 4)
    if not any(sections):
        raise GGUFError(
            f"{keys.path}: {keys.architecture}.{SECTIONS} must be 4 integers that are not all 0"
        )
    return sections


def qwen2vl(keys: KeyReader) -> DecoderConfig:
    """Qwen2-VL and Qwen2.5-VL: Qwen2 with rotary sections."""
    plain = rope(keys, head_width(keys), interleaved=False)
    return llama_like(keys, attention=dict(rope=with_sections(keys, plain, interleaved=False)))


def qwen3vl(keys: KeyReader, **changes) -> DecoderConfig:
    """Qwen3-VL: Qwen3 with interleaved rotary sections.

    Args:
        keys: The keys of the file.
        **changes: See `llama_like`.
    """
    plain = rope(keys, head_width(keys), interleaved=False)
    sectioned = with_sections(keys, plain, interleaved=True)
    return llama_like(keys, attention=dict(qk_norm="head", rope=sectioned), **changes)


def _rope_of_either(keys: KeyReader, interleaved: bool) -> RopeConfig:
    """Reads the rotary embedding of a family in which only the vision models use M-RoPE.

    Args:
        keys: The keys of the file.
        interleaved: Whether rotated pairs are adjacent elements in the models without M-RoPE.
    """
    if 0 in keys.numbers(SECTIONS, 4)[:2]:  # the same test as in llama.cpp
        return rope(keys, head_width(keys), interleaved)
    plain = rope(keys, head_width(keys), interleaved=False)
    return with_sections(keys, plain, interleaved=False)


def glm4(keys: KeyReader) -> DecoderConfig:
    """GLM-4-0414 and GLM-4.1V: norms after each part."""
    rotary = _rope_of_either(keys, interleaved=True)
    return llama_like(keys, norms=POST_NORMS, attention=dict(rope=rotary))


def glm4moe(keys: KeyReader) -> DecoderConfig:
    """GLM-4.5 to 4.7: experts after leading dense layers; QK norm per head in the large models."""
    return llama_like(
        keys,
        experts_required=True,
        norms=POST_ATTENTION_NORM,
        attention=norm_of_heads(keys) | dict(rope=_rope_of_either(keys, interleaved=False)),
        routing=read_routing(keys, "sigmoid"),
    )


def hunyuan(keys: KeyReader) -> DecoderConfig:
    """Hunyuan, dense: QK norm per head after the rotation; a key may increase the rotary base."""
    rotary, alpha = (
        _rope_of_either(keys, interleaved=False),
        keys.optional_real("rope.scaling.alpha"),
    )
    if alpha is not None:
        width = head_width(keys)
        base = rotary.base * alpha ** (width / (width - 2))
        rotary = dataclasses.replace(rotary, base=base)
    attention = dict(qk_norm="head", rotates_first=True, rope=rotary)
    return llama_like(keys, attention=attention)
