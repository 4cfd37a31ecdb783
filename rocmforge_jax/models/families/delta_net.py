"""Qwen3-Next and Qwen 3.5: layers with the gated delta rule and layers with gated attention."""

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.models.families.shared import ssm_heads
from rocmforge_jax.models.keys import KeyReader
from rocmforge_jax.models.llama_like import llama_like
from rocmforge_jax.models.mixers import Attention, DeltaRule
from rocmforge_jax.models.read_attention import head_width


def qwen3next(keys: KeyReader, *, grouped: bool = True, **changes) -> DecoderConfig:
    """Qwen3-Next: the gated delta rule in three layers of four, gated attention in the fourth.

    Args:
        keys: The keys of the file.
        grouped: See `DeltaRule`.
        **changes: See `llama_like`.
    """
    recurrent = _recurrent_layers(keys)

    def mixer(i: int, attention: Attention | None):
        return _delta_rule(keys, i, grouped) if recurrent[i] else attention

    return llama_like(
        keys,
        norms=dict(before_feed_forward="post_attention_norm"),
        attention=dict(qk_norm="head", gate="query"),
        mixer=mixer,
        **changes,
    )


def qwen35(keys: KeyReader, **changes) -> DecoderConfig:
    """Qwen 3.5: Qwen3-Next with value heads in another order, and rotary sections.

    Args:
        keys: The keys of the file.
        **changes: See `llama_like`.
    """
    _check_sections(keys)
    return qwen3next(keys, grouped=False, **changes)


def _recurrent_layers(keys: KeyReader) -> tuple[bool, ...]:
    """Returns which blocks are recurrent: a list in the file, or all except every fourth."""
    listed, every = "attention.recurrent_layers", "full_attention_interval"
    if keys.get(listed) is not None:
        keys.get(every)  # marks the key as read, although only the list is used
        recurrent = keys.flags(listed)
    else:
        interval = keys.integer(every, 4)
        recurrent = tuple((i + 1) % interval != 0 for i in range(keys.layers))
    # The blocks for multi-token prediction use attention.
    return recurrent[: keys.layers] + (False,) * (keys.blocks - keys.layers)


def _delta_rule(keys: KeyReader, i: int, grouped: bool) -> DeltaRule:
    """Reads the gated delta rule of layer i."""
    value_heads, value_width = ssm_heads(keys, "value heads")
    return DeltaRule(
        key_heads=keys.integer("ssm.group_count"),
        value_heads=value_heads,
        key_width=keys.integer("ssm.state_size"),
        value_width=value_width,
        taps=keys.integer("ssm.conv_kernel"),
        grouped=grouped,
        fused_input=grouped and not keys.has(i, "attn_qkv.weight"),
        fused_shares=grouped,
    )


def _check_sections(keys: KeyReader) -> None:
    """Checks the sections of interleaved M-RoPE, which assign a head's pairs to coordinates.

    In a text, the first three coordinates equal the position, so their pairs rotate as with "neox".
    The fourth coordinate is 0, so its pairs would not rotate. Raises GGUFError if it has pairs.
    """
    key = "rope.dimension_sections"
    if keys.get(key) is None:
        return
    sections = keys.numbers(key, 4)
    pairs = keys.integer("rope.dimension_count", head_width(keys)) // 2
    total = sum(sections)
    fixed = [i for i in range(pairs) if not total or i % total >= 3 * sections[i % total % 3]]
    if fixed:
        raise GGUFError(
            f"{keys.path}: {keys.architecture}.{key} is {list(sections)}: {len(fixed)} of {pairs}"
            " pairs would not rotate in a text: not supported"
        )
