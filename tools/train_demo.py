"""Trains the demo model: `python -m tools.train_demo TEXT OUT.gguf` (needs the extra `train`).

The model is a Llama with grouped-query attention and a byte-level BPE vocabulary. It is trained on
the first 90 % of a text, and the weights with the lowest perplexity on the last 10 % are kept.

A million characters are few for this model, so training uses two regularisations. Each pass over
the text tokenises it with random merges left out (BPE dropout, Provilkov et al., 2020). Each step
sets a random share of the elements of every weight matrix to zero (DropConnect, Wan et al., 2013).

The results are written to OUT.gguf (the model) and OUT.json (a report).
"""

import argparse
import functools
import json
import math
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tokenizers import Tokenizer as Trainable
from tokenizers import decoders, models, pre_tokenizers, trainers

from rocmforge_jax import formats
from rocmforge_jax.generate import Engine, perplexity
from rocmforge_jax.gguf import write_gguf
from rocmforge_jax.loading import load
from rocmforge_jax.models import Attention, Decoder, DecoderConfig, Gated, param_count, tensor_name
from rocmforge_jax.nn import RopeConfig

VOCABULARY, HIDDEN = 1024, 640
END = "<|endoftext|>"
ATTENTION = Attention(8, 2, 32, RopeConfig(width=32, interleaved=True))
CONFIG = DecoderConfig.uniform(
    4,
    ATTENTION,
    Gated(HIDDEN),
    width=256,
    vocabulary=VOCABULARY,
    context_length=512,
    norm_epsilon=1e-5,
    tied=True,
)
#: The type of each matrix: a mix, so that the demo uses several formats.
TYPES = {
    "token_embd": "Q8_0",
    "attn_q": "Q5_0",
    "attn_k": "Q5_0",
    "attn_v": "Q8_0",
    "attn_output": "Q5_1",
    "ffn_gate": "Q4_1",
    "ffn_up": "Q4_1",
    "ffn_down": "Q5_1",
}
WINDOW, BATCH = CONFIG.context_length, 32


def train_tokenizer(text: str) -> Trainable:
    """Trains a byte-level BPE tokenizer with GPT-2's word pattern."""
    tokenizer = Trainable(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def window_loss(decoder: Decoder, tokens_BT):
    """Returns the mean negative log-likelihood of all tokens except the first of each window."""
    logits_BTV, _ = decoder(tokens_BT[:, :-1])
    losses_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, tokens_BT[:, 1:])
    return losses_BT.mean()


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(3, 4))
def step(graphdef, optimizer, drop, params, moments, average, tokens_BT, key):
    """Computes one AdamW step with DropConnect.

    Args:
        graphdef: The structure of the decoder.
        optimizer: The Optax optimizer.
        drop: The share of the elements of each matrix that is set to zero.
        params: The weights.
        moments: The state of the optimizer.
        average: The exponential moving average of the weights.
        tokens_BT: The token ids of a batch of windows.
        key: The random key.

    Returns:
        The new weights, moments and average, and the loss.
    """

    def loss(params):
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(key, len(leaves))

        def keep(k, w):
            return (
                w * jax.random.bernoulli(k, 1 - drop, w.shape).astype(w.dtype) / (1 - drop)
                if w.ndim > 1
                else w
            )

        return window_loss(
            nnx.merge(graphdef, jax.tree.unflatten(tree, list(map(keep, keys, leaves)))), tokens_BT
        )

    value, gradients = jax.value_and_grad(loss)(params)
    with jax.numpy_dtype_promotion("standard"):
        updates, moments = optimizer.update(gradients, moments, params)
        params = optax.apply_updates(params, updates)
        average = optax.incremental_update(params, average, 0.005)
    return params, moments, average, value


def held_out_loss(decoder: Decoder, ids: np.ndarray) -> float:
    """Returns the mean negative log-likelihood per token, over windows of WINDOW tokens."""
    graphdef, state = nnx.split(decoder)
    evaluate = jax.jit(lambda state, tokens: window_loss(nnx.merge(graphdef, state), tokens))
    count = (len(ids) - 1) // WINDOW
    windows = np.stack([ids[i * WINDOW : (i + 1) * WINDOW + 1] for i in range(count)])
    batches = np.array_split(windows, -(-count // BATCH))
    return float(sum(float(evaluate(state, jnp.asarray(b))) * len(b) for b in batches) / count)


def batches(tokenizer: Trainable, text: str, dropout: float, seed: int):
    """Yields random windows [BATCH, WINDOW + 1] without end.

    The text is tokenised again for each pass, with BPE dropout.

    Args:
        tokenizer: The tokenizer.
        text: The text.
        dropout: The probability that a merge is left out.
        seed: The seed of the choice of windows.
    """
    random = np.random.default_rng(seed)
    model = tokenizer.model
    while True:
        model.dropout = dropout
        ids = np.array(tokenizer.encode(text).ids, np.int32)
        model.dropout = None
        for _ in range(max(len(ids) // (BATCH * WINDOW), 1)):
            starts = random.integers(0, len(ids) - WINDOW - 1, BATCH)
            yield np.stack([ids[s : s + WINDOW + 1] for s in starts])


def train(
    text: str, held_out_text: str, steps: int, patience: int, seed: int = 0
) -> tuple[Decoder, Trainable]:
    """Trains a tokenizer and a decoder.

    Args:
        text: The training text.
        held_out_text: The text on which the weights are evaluated.
        steps: The largest number of steps.
        patience: The number of successive evaluations without an improvement that ends training.
        seed: The seed of weights and batches.

    Returns:
        The decoder with the averaged weights that were best on the held-out text, and the
        tokenizer.
    """
    tokenizer = train_tokenizer(text)
    held_out = np.array(tokenizer.encode(held_out_text).ids, np.int32)
    decoder = Decoder(CONFIG, rngs=nnx.Rngs(seed))
    graphdef, params = nnx.split(decoder, nnx.Param)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 2e-3, min(100, steps // 10), steps, 1e-4)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.1)
    )
    with jax.numpy_dtype_promotion("standard"):
        moments = optimizer.init(params)
    average = jax.tree.map(jnp.copy, params)
    source = batches(tokenizer, text, 0.1, seed)
    key, best, best_loss, since, began = (
        jax.random.key(seed),
        average,
        np.inf,
        0,
        time.perf_counter(),
    )
    for number in range(1, steps + 1):
        tokens = jnp.asarray(next(source))
        params, moments, average, loss = step(
            graphdef,
            optimizer,
            0.1,
            params,
            moments,
            average,
            tokens,
            jax.random.fold_in(key, number),
        )
        if number % 100 and number != steps:
            continue
        now = held_out_loss(nnx.merge(graphdef, average), held_out)
        print(
            f"step {number}: loss {float(loss):.3f}, held out {now:.3f},"
            f" {time.perf_counter() - began:.0f} s",
            file=sys.stderr,
        )
        if now < best_loss:
            best, best_loss, since = jax.tree.map(jnp.copy, average), now, 0
        else:
            since += 1
        if since >= patience:
            break
    return nnx.merge(graphdef, best), tokenizer


def metadata(tokenizer: Trainable) -> dict:
    """Returns the metadata of the file, with llama.cpp's keys."""
    data = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(data["vocab"], key=data["vocab"].get)
    config = CONFIG
    return {
        "general.architecture": "llama",
        "general.name": "rocmforge demo: mock Shakespeare",
        "general.description": (
            "A toy model that shows rocmforge_jax at work. Trained on public-domain plays."
        ),
        "general.license": "apache-2.0",
        "general.quantization_version": 2,
        "llama.block_count": len(config.layers),
        "llama.context_length": config.context_length,
        "llama.embedding_length": config.width,
        "llama.feed_forward_length": HIDDEN,
        "llama.attention.head_count": ATTENTION.heads,
        "llama.attention.head_count_kv": ATTENTION.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": np.float32(config.norm_epsilon),
        "llama.rope.freq_base": np.float32(ATTENTION.rope.base),
        "llama.rope.dimension_count": ATTENTION.rope.width,
        "llama.vocab_size": config.vocabulary,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token == END else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in data["merges"]],
        "tokenizer.ggml.eos_token_id": tokens.index(END),
        "tokenizer.ggml.bos_token_id": tokens.index(END),
        "tokenizer.ggml.add_bos_token": False,
    }


def tensors(decoder: Decoder) -> dict:
    """Returns name -> (type, data): matrices quantised according to TYPES, vectors in F32."""
    out = {}
    for path, variable in nnx.to_flat_state(nnx.state(decoder)):
        values = np.asarray(variable.get_value(), np.float32)
        values = np.ascontiguousarray(values.T if path[-1] == "kernel" else values)
        kind = TYPES[path[-2]] if values.ndim > 1 else "F32"
        out[tensor_name(path)] = (kind, values if kind == "F32" else formats.quantize(values, kind))
    return out


def main():
    """Trains the model and writes OUT.gguf and OUT.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument(
        "--patience",
        type=int,
        default=6,
        help="evaluations without a better one before training stops",
    )
    options = parser.parse_args()

    text = options.text.read_text()
    cut = len(text) * 9 // 10
    decoder, tokenizer = train(text[:cut], text[cut:], options.steps, options.patience)
    held_out = text[cut:]
    write_gguf(options.out, metadata(tokenizer), tensors(decoder))
    language_model = load(options.out, dtype=jnp.float32)
    quantised, before = (
        language_model.perplexity(held_out),
        perplexity(Engine(decoder), language_model.tokenizer.encode(held_out)),
    )
    tokens_per_character = len(language_model.tokenizer.encode(held_out)) / len(held_out)
    report = {
        "parameters": param_count(decoder),
        "file_bytes": options.out.stat().st_size,
        "held_out_characters": len(held_out),
        "held_out_perplexity": round(quantised.value, 3),
        "held_out_perplexity_before_quantisation": round(before.value, 3),
        "held_out_bits_per_character": round(math.log2(quantised.value) * tokens_per_character, 4),
        "window": WINDOW,
    }
    options.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
