"""Small random files of encoders, by the keys and tensors that llama.cpp reads.

`tools/make_embedding_data.py` stores what llama.cpp computes of them.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rocmforge_jax.gguf import write_gguf

WIDTH, UNITS, HEADS, LAYERS, VOCABULARY, CONTEXT, EXPERTS = 48, 80, 4, 4, 90, 160, 5
#: Texts of these many tokens: the longest crosses all windows several times.
LENGTHS = (150, 7, 64, 1)
#: Widths of norms that are not the model's.
LN = {"attention.layer_norm_epsilon": 1e-5}
RMS = {"attention.layer_norm_rms_epsilon": 1e-5}
LABELS = {"classifier.output_labels": ["a", "b", "c"]}
SEPARATE, FUSED = ("attn_q", "attn_k", "attn_v"), ("attn_qkv",)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A file: its architecture, keys without its prefix, and what its layers are made of.

    Attributes:
        architecture: general.architecture.
        keys: Besides those of all files.
        projections: Of queries, keys and values.
        kv_heads: KV heads.
        norms: Of a layer; those with a bias in a file with biases.
        biases: Whether layers and norms have biases.
        gate: "own" for ffn_gate, "fused" in ffn_up, or None.
        period: One layer of so many has experts, 0 for none.
        outside: Names and rows of matrices outside of the layers; 0 for a norm.
        without: Tensors that the file lacks.
    """

    architecture: str
    keys: dict[str, Any]
    projections: tuple[str, ...] = SEPARATE
    kv_heads: int = HEADS
    norms: tuple[str, ...] = ("attn_norm", "ffn_norm")
    biases: bool = False
    gate: str | None = "own"
    period: int = 0
    outside: tuple[tuple[str, int], ...] = (("output_norm", 0),)
    without: tuple[str, ...] = ()


BERT: dict[str, Any] = dict(
    norms=("attn_output_norm", "layer_output_norm"),
    biases=True,
    gate=None,
    outside=(("token_types", 2), ("token_embd_norm", 0)),
)
POSITIONS = ("position_embd", CONTEXT)
MODERN: dict[str, Any] = dict(
    projections=FUSED, gate="fused", outside=(("token_embd_norm", 0), ("output_norm", 0))
)
EMBEDDED = MODERN["outside"]
SCORES = (("cls", WIDTH), ("cls.output", 3))
MOE = {"expert_count": EXPERTS, "expert_used_count": 2}
FILES = {
    "bert": Encoder(
        "bert", LN | {"pooling_type": 2}, **BERT | dict(outside=(*BERT["outside"], POSITIONS))
    ),
    "bert, reranker": Encoder(
        "bert",
        LN | LABELS | {"pooling_type": 4, "attention.causal": True},
        **BERT | dict(outside=(*BERT["outside"], POSITIONS, *SCORES)),
    ),
    "jina-bert-v3": Encoder("jina-bert-v3", LN | {"rope.freq_base": 20000.0}, FUSED, **BERT),
    "jina-bert-v2": Encoder("jina-bert-v2", LN, **BERT | dict(gate="own")),
    "jina-bert-v2, fused, normed": Encoder(
        "jina-bert-v2",
        LN,
        **BERT | dict(gate="fused", norms=(*BERT["norms"], "attn_q_norm", "attn_k_norm")),
    ),
    "jina-bert-v2 without gates": Encoder("jina-bert-v2", LN, **BERT),
    "nomic-bert-moe": Encoder(
        "nomic-bert-moe", LN | MOE | {"moe_every_n_layers": 2}, FUSED, **BERT, period=2
    ),
    "nomic-bert-moe, period of 3": Encoder(
        "nomic-bert-moe", LN | MOE | {"moe_every_n_layers": 3}, **BERT, period=3
    ),
    "modern-bert": Encoder(
        "modern-bert",
        LN
        | {
            "attention.sliding_window": 21,
            "rope.freq_base": 160000.0,
            "rope.freq_base_swa": 9000.0,
        },
        **MODERN,
        without=("blk.0.attn_norm.weight",),
    ),
    "modern-bert, SiLU, reranker": Encoder(
        "modern-bert",
        LN
        | LABELS
        | {
            "attention.sliding_window": 40,
            "attention.sliding_window_pattern": 2,
            "hidden_activation": "silu",
            "pooling_type": 4,
        },
        **MODERN | dict(outside=(*EMBEDDED, *SCORES, ("cls.norm", 0))),
    ),
    "modern-bert without windows": Encoder("modern-bert", LN | {"pooling_type": 3}, **MODERN),
    "neo-bert": Encoder(
        "neo-bert",
        RMS | {"rope.scaling.type": "none", "pooling_type": 2},
        FUSED,
        gate="fused",
        outside=(("enc.output_norm", 0),),
    ),
    "eurobert": Encoder("eurobert", RMS | {"rope.freq_base": 250000.0}, kv_heads=2),
    "llama-embed": Encoder("llama-embed", RMS, kv_heads=2),
    "qwen2 without a causal mask": Encoder("qwen2", RMS | {"pooling_type": 3}, kv_heads=2),
    "qwen3, reranker": Encoder(
        "qwen3",
        RMS | LABELS | {"pooling_type": 4, "attention.causal": True},
        kv_heads=2,
        norms=("attn_norm", "ffn_norm", "attn_q_norm", "attn_k_norm"),
        outside=(("output_norm", 0), ("cls.output", 3)),
    ),
}


def texts() -> list[list[int]]:
    """The token ids of the texts."""
    return [
        np.random.default_rng(length).integers(0, VOCABULARY, length).tolist() for length in LENGTHS
    ]


def write(name: str, path: Path) -> None:
    """Writes the file of that name."""
    encoder = FILES[name]
    shared = {
        "block_count": LAYERS,
        "context_length": CONTEXT,
        "embedding_length": WIDTH,
        "feed_forward_length": UNITS,
        "attention.head_count": HEADS,
        "attention.head_count_kv": encoder.kv_heads,
        "attention.causal": False,
        "pooling_type": 1,
        "vocab_size": VOCABULARY,
    }
    keys = {
        f"{encoder.architecture}.{key}": _typed(value)
        for key, value in (shared | encoder.keys).items()
    }
    keys |= {
        "general.architecture": encoder.architecture,
        "tokenizer.ggml.model": "none",
        "tokenizer.ggml.token_type_count": np.uint32(2),
    }
    random = np.random.default_rng(list(name.encode()))
    tensors = {}
    for tensor, shape in _shapes(encoder):
        values = random.standard_normal(shape).astype(np.float32)
        norm, bias = tensor.endswith("norm.weight"), tensor.endswith(".bias")
        if norm or bias:
            values = np.float32(norm) + np.float32(0.3) * values
        elif not tensor.startswith(("token_", "position_")):
            values /= np.float32(shape[-1] ** 0.5)
        tensors[tensor] = ("F32", values)
    write_gguf(path, keys, tensors)


def _typed(value):
    if isinstance(value, float):
        return np.float32(value)
    return np.uint32(value) if type(value) is int else value


def _shapes(encoder: Encoder) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the names and the shapes of the tensors of a file."""
    yield "token_embd.weight", (VOCABULARY, WIDTH)
    for name, rows in encoder.outside:
        yield f"{name}.weight", ((rows, WIDTH) if rows else (WIDTH,))
        if encoder.biases and name in ("token_embd_norm", "cls", "cls.output"):
            yield f"{name}.bias", (rows or WIDTH,)
    for i in range(LAYERS):
        for name, shape in _of_layer(encoder, i):
            if f"blk.{i}.{name}.weight" in encoder.without:
                continue
            yield f"blk.{i}.{name}.weight", shape
            if encoder.biases and not name.endswith(("_exps", "_inp", "_gate")):
                yield f"blk.{i}.{name}.bias", (shape[0],)


def _of_layer(encoder: Encoder, i: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    of_keys = encoder.kv_heads * WIDTH // HEADS
    rows = dict(attn_q=WIDTH, attn_k=of_keys, attn_v=of_keys, attn_qkv=WIDTH + 2 * of_keys)
    for name in encoder.projections:
        yield name, (rows[name], WIDTH)
    yield "attn_output", (WIDTH, WIDTH)
    for name in encoder.norms:
        of_head = encoder.architecture == "qwen3" and name in ("attn_q_norm", "attn_k_norm")
        yield name, (WIDTH // HEADS if of_head else WIDTH,)
    if encoder.period and i % encoder.period == 1:
        yield "ffn_gate_inp", (EXPERTS, WIDTH)
        yield "ffn_up_exps", (EXPERTS, UNITS, WIDTH)
        yield "ffn_down_exps", (EXPERTS, WIDTH, UNITS)
        return
    yield "ffn_up", (UNITS * (2 if encoder.gate == "fused" else 1), WIDTH)
    if encoder.gate == "own":
        yield "ffn_gate", (UNITS, WIDTH)
    yield "ffn_down", (WIDTH, UNITS)
