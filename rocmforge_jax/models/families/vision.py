"""The text part of families that also see images."""

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

#: How many pairs of a head belong to each of four positions.
SECTIONS = "rope.dimension_sections"


def with_sections(keys: KeyReader, config: RopeConfig, *, interleaved: bool) -> RopeConfig:
    """Returns a rotary embedding whose pairs are divided into sections of four positions.

    The first three are those of time, height and width. A text has the same number for each, so
    these pairs rotate as ever. The fourth is 0 in a text, as in llama.cpp: its pairs stand still.

    Args:
        keys: Of the file.
        config: The rotary embedding without sections.
        interleaved: Whether the first three sections take turns with every pair.
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
    """Reads the number of pairs of each of four sections, of which one at least must be there."""
    sections = keys.numbers(SECTIONS, 4)
    if not any(sections):
        raise GGUFError(
            f"{keys.path}: {keys.architecture}.{SECTIONS} must be 4 integers that are not all 0"
        )
    return sections


def qwen2vl(keys: KeyReader) -> DecoderConfig:
    """Qwen2-VL and Qwen2.5-VL: Qwen2 with sections of positions."""
    plain = rope(keys, head_width(keys), interleaved=False)
    return llama_like(keys, attention=dict(rope=with_sections(keys, plain, interleaved=False)))


def qwen3vl(keys: KeyReader, **changes) -> DecoderConfig:
    """Qwen3-VL: Qwen3 with sections of positions that take turns.

    changes: As for `llama_like`.
    """
    plain = rope(keys, head_width(keys), interleaved=False)
    sectioned = with_sections(keys, plain, interleaved=True)
    return llama_like(keys, attention=dict(qk_norm="head", rope=sectioned), **changes)


def _rope_of_either(keys: KeyReader, interleaved: bool) -> RopeConfig:
    """Reads the rotary embedding of a family that has sections where a model sees images.

    interleaved: Which elements rotate together where it does not.
    """
    if 0 in keys.numbers(SECTIONS, 4)[:2]:  # what llama.cpp goes by
        return rope(keys, head_width(keys), interleaved)
    plain = rope(keys, head_width(keys), interleaved=False)
    return with_sections(keys, plain, interleaved=False)


def glm4(keys: KeyReader) -> DecoderConfig:
    """GLM-4-0414 and GLM-4.1V: norms after each part."""
    rotary = _rope_of_either(keys, interleaved=True)
    return llama_like(keys, norms=POST_NORMS, attention=dict(rope=rotary))


def glm4moe(keys: KeyReader) -> DecoderConfig:
    """GLM-4.5 to 4.7: experts after leading dense layers, norms of heads in the large ones."""
    return llama_like(
        keys,
        experts_required=True,
        norms=POST_ATTENTION_NORM,
        attention=norm_of_heads(keys) | dict(rope=_rope_of_either(keys, interleaved=False)),
        routing=read_routing(keys, "sigmoid"),
    )


def hunyuan(keys: KeyReader) -> DecoderConfig:
    """Hunyuan, dense: heads rotate before they are normed; a key may raise the rotary base."""
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
