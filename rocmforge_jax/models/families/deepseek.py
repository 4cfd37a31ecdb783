"""DeepSeek V2, V3 and other models with latent attention: Kimi K2, GLM-4.7-Flash, Moonlight."""

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.models.keys import KeyReader
from rocmforge_jax.models.llama_like import llama_like, vocabulary
from rocmforge_jax.models.mixers import LatentAttention, Temperature
from rocmforge_jax.models.read_feed_forward import read_routing
from rocmforge_jax.models.read_rope import rope
from rocmforge_jax.nn import RELU2, yarn_magnitude

#: Layers and vocabulary of GLM-4.7-Flash. Its router uses a sigmoid, but files may lack this key.
_GLM_FLASH = (47, 48), 154880


def deepseek2(keys: KeyReader) -> DecoderConfig:
    """DeepSeek V2 and later: latent attention, leading dense layers, shared experts."""
    layers, rows = _GLM_FLASH
    flash = keys.layers in layers and vocabulary(keys) == rows
    return llama_like(
        keys,
        experts_required=True,
        mixers=[_latent_attention(keys, i) for i in range(keys.blocks)],
        routing=read_routing(keys, "sigmoid" if flash else "softmax"),
    )


def plm(keys: KeyReader) -> DecoderConfig:
    """PLM: latent attention, and squared ReLU without gates."""
    return llama_like(
        keys,
        mixers=[_small_latent_attention(keys, i, interleaved=True) for i in range(keys.layers)],
        gated=dict(activation=RELU2, gated=False),
    )


def minicpm3(keys: KeyReader) -> DecoderConfig:
    """MiniCPM 3: latent attention; fixed factors of embeddings, residuals and logits."""
    return llama_like(
        keys,
        mixers=[_small_latent_attention(keys, i, interleaved=False) for i in range(keys.layers)],
        embedding_scale=12.0,
        layer=dict(residual_scale=1.4 / keys.layers**0.5),
        logit_scale=256 / keys.integer("embedding_length"),
    )


def _small_latent_attention(keys: KeyReader, i: int, interleaved: bool) -> LatentAttention:
    """Reads latent attention of a file that stores keys and values in one tensor, attn_kv_b."""
    rotating = keys.integer("rope.dimension_count")
    width = keys.integer("attention.key_length", low=rotating + 1)
    return LatentAttention(
        heads=keys.integer("attention.head_count"),
        rank=keys.integer("attention.kv_lora_rank"),
        key_width=width - rotating,
        value_width=keys.integer("attention.value_length"),
        rope=rope(keys, rotating, interleaved),
        scale=width**-0.5,
        query_rank=_query_rank(keys, i),
    )


def _latent_attention(keys: KeyReader, i: int) -> LatentAttention:
    rotating = keys.integer("rope.dimension_count")
    width, value_width = _widths(keys, i, rotating)
    # The converter stores a tenth of the multiplier.
    multiplier = 10 * (keys.optional_real("rope.scaling.yarn_log_multiplier") or 0.0)
    rotary = rope(keys, rotating, True, log_multiplier=multiplier, mscale=multiplier or 1.0)
    magnitude = rotary.magnitude * yarn_magnitude(rotary.scale, multiplier)
    return LatentAttention(
        heads=keys.integer("attention.head_count"),
        rank=keys.integer("attention.kv_lora_rank"),
        key_width=width - rotating,
        value_width=value_width,
        rope=rotary,
        scale=magnitude**2 / width**0.5,
        query_rank=_query_rank(keys, i),
        temperature=_temperature(keys),
    )


def _widths(keys: KeyReader, i: int, rotating: int) -> tuple[int, int]:
    """Reads the widths of a head's keys and values.

    Files from before April 2025 have no separate keys for them.

    Args:
        keys: The keys of the file.
        i: The number of the layer.
        rotating: The number of elements of a key that rotate.
    """
    defaults = {}
    if keys.has(i, "attn_kv_b.weight"):
        defaults = {name: keys.integer(f"attention.{name}_length") for name in ("key", "value")}
    width = keys.integer("attention.key_length_mla", defaults.get("key"), low=rotating + 1)
    if width <= rotating:
        raise GGUFError(
            f"{keys.path}: {keys.architecture}.attention.key_length is {width}, of which"
            f" {rotating} elements rotate: there must be more"
        )
    return width, keys.integer("attention.value_length_mla", defaults.get("value"))


def _query_rank(keys: KeyReader, i: int) -> int | None:
    """Reads the width of the queries' latent; None for the Lite models, which do not have one."""
    rank = keys.integer("attention.q_lora_rank", 0, low=0)
    return None if keys.has(i, "attn_q.weight") or not rank else rank


def _temperature(keys: KeyReader) -> Temperature | None:
    scale = keys.optional_real("attention.temperature_scale")
    steps = keys.integer("attention.temperature_length", 0, low=0)
    return Temperature(scale, steps) if scale and steps else None
