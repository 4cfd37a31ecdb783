"""Writes a GGUF file with the shapes of a well-known model and random weights.

    python benchmarks/synthetic.py qwen2.5-0.5b q4_0 OUT.gguf

Speed does not depend on the values of the weights, as long as they are finite and of a normal size.
Random scales therefore give the weights a standard deviation of about 0.02.

The files have no vocabulary; like in llama.cpp, `tokenizer.ggml.model` is "no_vocab". Use them with
`rocmforge-jax bench`, `rocmforge-jax inspect` and benchmarks/cpu.py.
"""

import argparse
import math
from pathlib import Path

import hybrid_shapes
import numpy as np
from mixes import fitting, type_of

from rocmforge_jax import formats
from rocmforge_jax.gguf import write_gguf

#: name -> architecture, layers, width, hidden, heads, KV heads, head width, vocabulary, rope base.
SHAPES = {
    "qwen2.5-0.5b": ("qwen2", 24, 896, 4864, 14, 2, 64, 151936, 1e6),
    "llama-3.2-1b": ("llama", 16, 2048, 8192, 32, 8, 64, 128256, 5e5),
    "llama-3.1-8b": ("llama", 32, 4096, 14336, 32, 8, 128, 128256, 5e5),
    "qwen2.5-7b": ("qwen2", 28, 3584, 18944, 28, 4, 128, 152064, 1e6),
    "qwen3-30b-a3b": ("qwen3moe", 48, 2048, 6144, 32, 4, 128, 151936, 1e6),
    "gpt-oss-20b": ("gpt-oss", 24, 2880, 2880, 64, 8, 64, 201088, 150000),
    "llama-few": ("llama", 8, 2048, 8192, 32, 8, 64, 16384, 5e5),
    "qwen3moe-few": ("qwen3moe", 3, 2048, 6144, 32, 4, 128, 8192, 1e6),
    "gpt-oss-few": ("gpt-oss", 4, 1440, 1440, 32, 4, 64, 8192, 150000),
    "gemma-3-270m": ("gemma3", 18, 640, 2048, 4, 1, 256, 262144, 1e6),
    "gemma-3-27b": ("gemma3", 62, 5376, 21504, 32, 16, 128, 262208, 1e6),
}
#: The tensor of the router, which is never quantised.
ROUTER = "ffn_gate_inp.weight"
#: name -> experts, experts per token, hidden units of each.
MIXTURES = {"qwen3-30b-a3b": (128, 8, 768), "gpt-oss-20b": (32, 4, 2880)}
MIXTURES |= {"qwen3moe-few": (128, 8, 768), "gpt-oss-few": (32, 4, 1440)}
#: name -> the sliding window.
WINDOWS = {"gpt-oss-20b": 128, "gpt-oss-few": 128, "gemma-3-270m": 512, "gemma-3-27b": 1024}
#: name -> the context extension factor of a Llama 3 relative to the 8192 tokens of its pretraining.
#: Files store its effect in `rope_freqs.weight`.
STRETCHED = {"llama-3.2-1b": 32, "llama-3.1-8b": 8}


def random_blocks(
    fmt: formats.Format, shape: tuple[int, ...], random: np.random.Generator
) -> np.ndarray:
    """Makes the blocks of a tensor of row-major `shape`, uint8 [..., row bytes].

    Floating-point fields, and exponents, make small weights; all others are random bytes.
    """
    count = math.prod(shape) // fmt.block
    members = [np.dtype(field.dtype) for field in fmt.fields]
    blocks = np.empty(
        count, [(field.name, dtype, field.shape) for field, dtype in zip(fmt.fields, members)]
    )
    largest = 2.0 ** (fmt.bits_per_element - 0.5) * (16 if fmt.block == 256 else 1)
    for field, dtype in zip(fmt.fields, members):
        size = (count, *field.shape)
        if fmt.name in ("F32", "F16", "BF16"):
            numbers = random.standard_normal(size, np.float32) * np.float32(0.02)
            halves = (numbers.view(np.uint32) >> 16).astype(np.uint16)  # bfloat16
            of_type = {"F32": numbers, "F16": numbers.astype(np.float16), "BF16": halves}
            blocks[field.name] = of_type[fmt.name].view(dtype)
        elif dtype == np.float16:
            blocks[field.name] = random.uniform(0.5, 1.0, size).astype(np.float32) * 0.06 / largest
        elif field.name == "e":  # the exponents of MXFP4, whose codes go up to 12
            blocks[field.name] = random.integers(117, 121, size, np.uint8)
        else:
            blocks[field.name] = np.frombuffer(
                random.bytes(math.prod(size) * dtype.itemsize), dtype
            ).reshape(size)
    return blocks.view(np.uint8).reshape(*shape[:-1], -1)


def layer_count(shape_name: str) -> int:
    if shape_name in hybrid_shapes.SHAPES:
        return hybrid_shapes.SHAPES[shape_name].layers
    return SHAPES[shape_name][1]


def tensor_shapes(shape_name: str) -> dict[str, tuple[int, ...]]:
    if shape_name in hybrid_shapes.SHAPES:
        return hybrid_shapes.tensor_shapes(shape_name)
    architecture, layers, width, hidden, heads, kv_heads, head, vocabulary, _ = SHAPES[shape_name]
    shapes = {"token_embd.weight": (vocabulary, width), "output_norm.weight": (width,)}
    block = {
        "attn_norm.weight": (width,),
        "attn_q.weight": (heads * head, width),
        "attn_k.weight": (kv_heads * head, width),
        "attn_v.weight": (kv_heads * head, width),
        "attn_output.weight": (width, heads * head),
        "ffn_norm.weight": (width,),
        "ffn_gate.weight": (hidden, width),
        "ffn_up.weight": (hidden, width),
        "ffn_down.weight": (width, hidden),
    }
    if shape_name in MIXTURES:
        experts, _, each = MIXTURES[shape_name]
        for name in ("ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"):
            del block[name]
        block |= {
            ROUTER: (experts, width),
            "ffn_gate_exps.weight": (experts, each, width),
            "ffn_up_exps.weight": (experts, each, width),
            "ffn_down_exps.weight": (experts, width, each),
        }
    if architecture in ("qwen3moe", "gemma3"):
        block |= {"attn_q_norm.weight": (head,), "attn_k_norm.weight": (head,)}
    if architecture == "gemma3":
        block |= dict.fromkeys(("post_attention_norm.weight", "post_ffw_norm.weight"), (width,))
    if architecture == "gpt-oss":
        block["post_attention_norm.weight"] = block.pop("ffn_norm.weight")
        block["attn_sinks.weight"] = (heads,)
        biased = [name for name in block if name.startswith(("attn_o", "ffn_"))]
        block |= {name.replace("weight", "bias"): block[name][:-1] for name in biased}
        shapes["output.weight"] = (vocabulary, width)
    if architecture in ("qwen2", "gpt-oss"):
        block |= {
            "attn_q.bias": (heads * head,),
            "attn_k.bias": (kv_heads * head,),
            "attn_v.bias": (kv_heads * head,),
        }
    for i in range(layers):
        shapes |= {f"blk.{i}.{name}": shape for name, shape in block.items()}
    return shapes


def is_packed(name: str, shape: tuple[int, ...]) -> bool:
    """Returns whether a tensor is quantised: a matrix that is no router, filter, norm or bias."""
    plain = (ROUTER, "conv1d.weight", "conv.weight", "norm.weight", "ssm_a", "ssm_d", ".bias")
    return len(shape) > 1 and not name.endswith(plain)


def rope_factors(shape_name: str) -> np.ndarray:
    """Makes the divisors of the RoPE frequencies, float32 [head width / 2].

    They are 1 for short waves and the stretch for long ones.
    """
    head, base = SHAPES[shape_name][6], SHAPES[shape_name][8]
    waves_in_context = 8192 * base ** (-np.arange(0, head, 2) / head) / (2 * math.pi)
    short = np.clip((waves_in_context - 1) / (4 - 1), 0, 1)
    return (1 / ((1 - short) / STRETCHED[shape_name] + short)).astype(np.float32)


def metadata(shape_name: str, type_name: str) -> dict:
    if shape_name in hybrid_shapes.SHAPES:
        shape = hybrid_shapes.SHAPES[shape_name]
        of_all = {
            "block_count": shape.layers,
            "context_length": 32768,
            "embedding_length": shape.width,
            "vocab_size": shape.vocabulary,
            "attention.layer_norm_rms_epsilon": np.float32(1e-6),
        }
        return _named(shape.architecture, shape_name, type_name, of_all | shape.keys())
    architecture, layers, width, hidden, heads, kv_heads, head, vocabulary, base = SHAPES[
        shape_name
    ]
    values = {
        "block_count": layers,
        "context_length": 32768,
        "embedding_length": width,
        "feed_forward_length": hidden,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.layer_norm_rms_epsilon": np.float32(1e-6),
        "rope.freq_base": np.float32(base),
        "rope.dimension_count": head,
        "vocab_size": vocabulary,
    }
    if shape_name in MIXTURES:
        experts, used, each = MIXTURES[shape_name]
        values |= {
            "expert_count": experts,
            "expert_used_count": used,
            "expert_feed_forward_length": each,
        }
    if shape_name in WINDOWS:
        values["attention.sliding_window"] = WINDOWS[shape_name]
    if architecture == "gpt-oss":
        values |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": np.float32(32),
            "rope.scaling.original_context_length": 4096,
        }
    return _named(architecture, shape_name, type_name, values)


def _named(architecture: str, shape_name: str, type_name: str, values: dict) -> dict:
    general = {"architecture": architecture, "name": f"synthetic {shape_name} {type_name.upper()}"}
    return (
        {f"general.{key}": value for key, value in general.items()}
        | {f"{architecture}.{key}": value for key, value in values.items()}
        | {"tokenizer.ggml.model": "no_vocab"}
    )


def write(shape_name: str, type_name: str, out: Path, seed: int = 0) -> None:
    """Write the file; matrices have the type `type_name` or those of that mix, vectors F32."""
    layers, random, tensors = layer_count(shape_name), np.random.default_rng(seed), {}
    shapes = tensor_shapes(shape_name)
    for name, shape in shapes.items():
        if is_packed(name, shape):
            chosen = type_of(name, layers, "output.weight" not in shapes, type_name)
            fmt = formats.get(fitting(chosen, shape[-1]))
            tensors[name] = (fmt, random_blocks(fmt, shape, random))
        else:
            # A negative ssm_a makes the memories of delta nets decay, so nothing overflows.
            mean = 1.0 if "norm" in name else -1.0 if name.endswith("ssm_a") else 0.0
            tensors[name] = ("F32", random.normal(mean, 0.02, shape).astype(np.float32))
    if shape_name in STRETCHED:
        tensors["rope_freqs.weight"] = ("F32", rope_factors(shape_name))
    if isinstance(shape := hybrid_shapes.SHAPES.get(shape_name), hybrid_shapes.Gemma4):
        tensors["rope_freqs.weight"] = ("F32", shape.rope_factors())
    write_gguf(out, metadata(shape_name, type_name), tensors)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=[*SHAPES, *hybrid_shapes.SHAPES])
    parser.add_argument("type")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    write(options.shape, options.type, options.out)
