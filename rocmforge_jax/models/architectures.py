"""Architectures are data: what a family of models has that the common decoder leaves open.

A new one is an entry here, or a call of `register` in a notebook:

    register(Architecture("mymodel", rope_interleaved=False, qkv_bias=True))
"""

import dataclasses
import difflib

import numpy as np

from rocmforge_jax.gguf import GGUFError, GGUFFile
from rocmforge_jax.models.config import DecoderConfig, KeyReader, MoEConfig
from rocmforge_jax.nn.rope import RopeConfig


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A value of general.architecture.

    rope_interleaved: which elements of a head form a rotated pair (ggml's "norm" if true, "neox" if
    not). qkv_bias: q, k and v have biases. qk_norm: each head of q and k is normed before it is
    rotated. post_norms: the results of attention and feed-forward are normed before they are added.
    fused_qkv: q, k and v are one tensor, attn_qkv. fused_gate_up: ffn_up holds gate and up.
    renormalize_experts: the weights of a token's experts sum to 1. ignored_keys: keys (without the
    architecture's prefix) that change nothing here -> why.
    """

    name: str
    rope_interleaved: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    fused_qkv: bool = False
    fused_gate_up: bool = False
    renormalize_experts: bool = True
    ignored_keys: dict[str, str] = dataclasses.field(default_factory=dict)


ARCHITECTURES: dict[str, Architecture] = {}

#: Keys of any architecture that describe and do not shape the model -> why they are not read.
DESCRIPTIVE_KEYS = {
    "rope.scaling.original_context_length": "the factors are in the file",
    "rope.scaling.finetuned": "a note on training",
    "attention.causal": "every decoder is causal",
    "use_parallel_residual": "these architectures have none",
    "tensor_data_layout": "the reader needs no hint",
}


def register(architecture: Architecture) -> None:
    """Makes an architecture known to `load`, in place of an entry of the same name."""
    ARCHITECTURES[architecture.name] = architecture


register(
    Architecture(
        "llama",
        rope_interleaved=True,
        ignored_keys={
            "attention.sliding_window": (
                "llama.cpp ignores it for this architecture: early Mistral files carry it"
            )
        },
    )
)
register(Architecture("qwen2", qkv_bias=True))
register(Architecture("qwen2moe", qkv_bias=True, renormalize_experts=False))
register(Architecture("qwen3", qk_norm=True))
register(Architecture("qwen3moe", qk_norm=True))
register(
    Architecture(
        "chatglm", rope_interleaved=True, qkv_bias=True, fused_qkv=True, fused_gate_up=True
    )
)
register(
    Architecture("glm4", rope_interleaved=True, qkv_bias=True, post_norms=True, fused_gate_up=True)
)


def find(name: str | None) -> Architecture:
    """Returns the architecture of a name; GGUFError names the nearest ones."""
    if name is None:
        raise GGUFError("the file has no general.architecture: it holds no model")
    if name not in ARCHITECTURES:
        near = difflib.get_close_matches(name, ARCHITECTURES, n=3, cutoff=0)
        raise GGUFError(
            f"the architecture {name!r} is not supported; the nearest are {', '.join(near)}"
        )
    return ARCHITECTURES[name]


def read_config(gguf: GGUFFile) -> tuple[DecoderConfig, dict[str, str]]:
    """Returns a file's configuration, and the architecture's keys that were not used.

    Each of these keys maps to the reason, or to "unknown".
    """
    architecture = find(gguf.architecture)
    keys = KeyReader(gguf.metadata, architecture.name)
    heads, width = keys.integer("attention.head_count"), keys.integer("embedding_length")
    head_width = _head_width(gguf, keys, heads, width)
    if keys.integer("attention.value_length", head_width) != head_width:
        raise GGUFError(
            f"keys are {head_width} wide and values {keys.integer('attention.value_length')}: not"
            " supported"
        )
    try:
        config = DecoderConfig(
            layers=_layers(gguf, keys),
            width=width,
            hidden=keys.integer("feed_forward_length"),
            heads=heads,
            kv_heads=keys.integer("attention.head_count_kv", heads),
            head_width=head_width,
            vocabulary=_vocabulary(gguf, keys),
            context_length=keys.integer("context_length"),
            norm_epsilon=keys.real("attention.layer_norm_rms_epsilon"),
            rope=_rope(gguf, keys, architecture, head_width),
            tied="output.weight" not in gguf.tensors,
            moe=_moe(keys, architecture),
            qkv_bias=architecture.qkv_bias,
            qk_norm=architecture.qk_norm,
            post_norms=architecture.post_norms,
            fused_qkv=architecture.fused_qkv,
            fused_gate_up=architecture.fused_gate_up,
            architecture=architecture.name,
        )
    except GGUFError:
        raise
    except ValueError as error:
        raise GGUFError(f"{gguf.path}: {error}") from None
    reasons = DESCRIPTIVE_KEYS | architecture.ignored_keys
    return config, {key: reasons.get(key.split(".", 1)[1], "unknown") for key in keys.unread()}


def _head_width(gguf, keys, heads, width) -> int:
    """The width of a head of k; where the file does not say, the heads share the model's width."""
    shared = None if width % heads else width // heads
    given = keys.integer("attention.key_length", shared or 0)
    if not given:
        raise GGUFError(
            f"{gguf.path}: width {width} is not a multiple of {heads} heads, and there is no"
            " attention.key_length"
        )
    return given


def _layers(gguf, keys) -> int:
    """Returns the number of layers, refused where the file cannot have tensors for so many."""
    layers = keys.integer("block_count")
    if layers > max(len(gguf.tensors), 1):
        raise GGUFError(
            f"{gguf.path}: {gguf.architecture}.block_count is {layers}, the file has"
            f" {len(gguf.tensors)} tensors"
        )
    return layers


def _vocabulary(gguf, keys) -> int:
    """Rows of the embedding; the key vocab_size, where there is one, must agree."""
    embedding = gguf.tensors.get("token_embd.weight")
    rows = embedding.shape[0] if embedding is not None and len(embedding.shape) == 2 else None
    if rows is None and f"{gguf.architecture}.vocab_size" not in gguf.metadata:
        raise GGUFError(f"{gguf.path}: the file has no matrix token_embd.weight")
    claimed = keys.integer("vocab_size", rows)
    if rows is not None and claimed != rows:
        raise GGUFError(
            f"{gguf.path}: {gguf.architecture}.vocab_size is {claimed}, token_embd.weight has"
            f" {rows} rows"
        )
    return claimed


def _moe(keys, architecture) -> MoEConfig | None:
    experts = keys.integer("expert_count", 0, low=0)
    if not experts:
        return None
    return MoEConfig(
        experts=experts,
        used=keys.integer("expert_used_count", high=experts),
        hidden=keys.integer("expert_feed_forward_length", keys.integer("feed_forward_length")),
        shared_hidden=keys.integer("expert_shared_feed_forward_length", 0, low=0),
        renormalize=architecture.renormalize_experts,
    )


def _rope(gguf, keys, architecture, head_width) -> RopeConfig:
    kind = keys.text("rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise GGUFError(
            f"{gguf.path}: rope scaling {kind!r} is not supported, only none and linear"
        )
    scale = keys.real("rope.scaling.factor", keys.real("rope.scale_linear", 1.0))
    return RopeConfig(
        width=keys.integer("rope.dimension_count", head_width),
        base=keys.real("rope.freq_base", 10000.0),
        interleaved=architecture.rope_interleaved,
        scale=scale if kind == "linear" else 1.0,
        factors=_rope_factors(gguf),
    )


def _rope_factors(gguf):
    """The long-context factors of Llama 3, which llama.cpp keeps in a tensor."""
    tensor = gguf.tensors.get("rope_freqs.weight")
    if tensor is None:
        return None
    if tensor.format.name != "F32" or len(tensor.shape) != 1:
        raise GGUFError(f"{gguf.path}: rope_freqs.weight must be an F32 vector, got {tensor}")
    return tuple(tensor.data.view(np.dtype("<f4")).tolist())
