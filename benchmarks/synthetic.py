"""GGUF files with the shapes of well-known models and random weights: `python benchmarks/synthetic.py qwen2.5-0.5b q4_0 OUT.gguf`.

Speed does not depend on the values, only on their being finite and of a sane size, so scales are drawn so that a weight has a
standard deviation of about 0.02. The files have no tokenizer: they are for `rocmforge-jax bench` and `rocmforge-jax inspect`.
"""

import argparse
import math
from pathlib import Path

import numpy as np

from rocmforge_jax import formats
from rocmforge_jax.gguf import write_gguf

#: name -> architecture, layers, width, hidden, heads, KV heads, head width, vocabulary, rope base.
SHAPES = {
    "qwen2.5-0.5b": ("qwen2", 24, 896, 4864, 14, 2, 64, 151936, 1e6),
    "llama-3.2-1b": ("llama", 16, 2048, 8192, 32, 8, 64, 128256, 5e5),
    "llama-3.1-8b": ("llama", 32, 4096, 14336, 32, 8, 128, 128256, 5e5),
    "qwen2.5-7b": ("qwen2", 28, 3584, 18944, 28, 4, 128, 152064, 1e6),
}


def random_blocks(fmt: formats.Format, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Blocks of a tensor of row-major `shape`: uint8 [..., row bytes], float16 members small, all others random bytes."""
    count = math.prod(shape) // fmt.block
    members = [np.dtype(field.dtype) for field in fmt.fields]
    blocks = np.empty(count, [(field.name, dtype, field.shape) for field, dtype in zip(fmt.fields, members)])
    largest = 2.0 ** (fmt.bits_per_element - 0.5) * (16 if fmt.block == 256 else 1)
    for field, dtype in zip(fmt.fields, members):
        size = (count, *field.shape)
        if dtype == np.float16:
            blocks[field.name] = random.uniform(0.5, 1.0, size).astype(np.float32) * 0.06 / largest
        else:
            blocks[field.name] = np.frombuffer(random.bytes(math.prod(size) * dtype.itemsize), dtype).reshape(size)
    return blocks.view(np.uint8).reshape(*shape[:-1], -1)


def tensor_shapes(shape_name: str) -> dict[str, tuple[int, ...]]:
    architecture, layers, width, hidden, heads, kv_heads, head, vocabulary, _ = SHAPES[shape_name]
    shapes = {"token_embd.weight": (vocabulary, width), "output_norm.weight": (width,)}
    block = {
        "attn_norm.weight": (width,), "attn_q.weight": (heads * head, width), "attn_k.weight": (kv_heads * head, width),
        "attn_v.weight": (kv_heads * head, width), "attn_output.weight": (width, heads * head), "ffn_norm.weight": (width,),
        "ffn_gate.weight": (hidden, width), "ffn_up.weight": (hidden, width), "ffn_down.weight": (width, hidden),
    }  # fmt: skip
    if architecture == "qwen2":
        block |= {"attn_q.bias": (heads * head,), "attn_k.bias": (kv_heads * head,), "attn_v.bias": (kv_heads * head,)}
    for i in range(layers):
        shapes |= {f"blk.{i}.{name}": shape for name, shape in block.items()}
    return shapes


def write(shape_name: str, type_name: str, out: Path, seed: int = 0) -> None:
    """Write the file; matrices have the type `type_name`, vectors F32."""
    architecture, layers, width, hidden, heads, kv_heads, head, vocabulary, base = SHAPES[shape_name]
    fmt, random = formats.get(type_name), np.random.default_rng(seed)
    prefix = lambda values: {f"{architecture}.{key}": value for key, value in values.items()}
    metadata = {"general.architecture": architecture, "general.name": f"synthetic {shape_name} {fmt}"} | prefix({
        "block_count": layers, "context_length": 32768, "embedding_length": width, "feed_forward_length": hidden,
        "attention.head_count": heads, "attention.head_count_kv": kv_heads, "attention.key_length": head,
        "attention.value_length": head, "attention.layer_norm_rms_epsilon": np.float32(1e-6), "rope.freq_base": np.float32(base),
        "rope.dimension_count": head, "vocab_size": vocabulary,
    })  # fmt: skip
    tensors = {}
    for name, shape in tensor_shapes(shape_name).items():
        if len(shape) > 1:
            tensors[name] = (fmt, random_blocks(fmt, shape, random))
        else:
            tensors[name] = ("F32", random.normal(1.0 if "norm" in name else 0.0, 0.02, shape).astype(np.float32))
    write_gguf(out, metadata, tensors)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("type")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    write(options.shape, options.type, options.out)
