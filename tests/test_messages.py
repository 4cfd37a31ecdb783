"""Wrong arguments around a model give one sentence with names, numbers and a remedy."""

import os
import stat

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import rocmforge_jax as rf
from rocmforge_jax.nn import Linear


@pytest.fixture(scope="module")
def lm():
    return rf.load("demo", progress=False)


@pytest.fixture(scope="module")
def model(lm):
    return lm.model


class OnlyX(nnx.Module):
    def __init__(self, block):
        self.block = block

    def __call__(self, x_BTD, tokens, state=None):
        return self.block(x_BTD, tokens, state)[0]


def wrapped(model):
    model = nnx.clone(model)
    model.blk[1] = OnlyX(model.blk[1])
    return model


def cast(model):
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(lambda a: a.astype(jnp.bfloat16), state))


IDS = [[3, 5], [7, 9]]
WRONG = {
    "embedding": (
        lambda lm: rf.lora(lm.model, 2, "token_embd"),
        "token_embd.weight is an embedding: only linear",
    ),
    "pattern": (
        lambda lm: rf.lora(lm.model, 2, ["blk.0.atn_q"]),
        r"'blk.0.atn_q': did you mean 'blk.\*.attn_q'\? There are blk.\*.attn_k, ",
    ),
    "alpha as text": (lambda lm: rf.lora(lm.model, 2, alpha="16"), "alpha .* got '16'"),
    "alpha nan": (lambda lm: rf.lora(lm.model, 2, alpha=float("nan")), "alpha .* got nan"),
    "alpha below 0": (lambda lm: rf.lora(lm.model, 2, alpha=-1), "alpha .* got -1"),
    "rngs": (lambda lm: rf.lora(lm.model, 2, rngs="x"), "nnx.Rngs, a key .* seed .* got 'x'"),
    "no model": (lambda lm: setattr(lm, "model", None), "NoneType and a Tokenizer"),
    "swapped": (
        lambda lm: rf.LanguageModel(lm.tokenizer, lm.model),  # pyright: ignore
        "Decoder and a Tokenizer, in this order, got a Tokenizer and a Decoder",
    ),
    "cache": (lambda lm: lm.model(IDS, "cache"), "Cache of init_cache, got a str"),
    "prompt cache": (lambda lm: lm.model([[3]], lm.cache([1, 2, 3])), "PromptCache.* its .cache"),
    "layers of a cache": (
        lambda lm: lm.model(IDS, rf.load("demo", layers=2, progress=False).model.init_cache(2, 9)),
        "2 layers, this one has 4",
    ),
    "width": (lambda lm: lm.model.head(jnp.ones((1, 255))), r"\[..., 256\], got \[1, 255\]"),
    "block": (
        lambda lm: wrapped(lm.model)(IDS),
        r"blk\[1\], a OnlyX, must return .* state, got a ",
    ),
    "batch": (
        lambda lm: rf.explore.attention_map(lm.model, jnp.ones((1, 4), int), 0),
        r"one prompt, .* ids \[T\] .*, got 1 rows",
    ),
    "texts": (lambda lm: rf.explore.next_tokens(lm, ["a", "b"]), "one prompt, .* got 2 texts"),
    "cast planes": (lambda lm: cast(lm.model)(IDS), "planes .* cast to bfloat16: .* nnx.Param"),
    "name": (lambda lm: rf.load("dmo"), "no file dmo; did you mean demo"),
    "structure": (
        lambda lm: lm.generate("a", logits_processor=lambda t, n, x, s: (x, {"a": n})),
        r"structure \(\), got \{'a': array\}",
    ),
    "state": (
        lambda lm: lm.generate("a", logits_processor=rf.LogitsProcessor(lambda *_: _, "abc")),
        "numbers and arrays, got 'abc'",
    ),
    "arithmetic": (
        lambda lm: lm.model.blk[0].attn_q.kernel + 1,
        "no arithmetic but x @ w: .*dequantize",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments(lm, case):
    call, message = WRONG[case]
    with pytest.raises((FileNotFoundError, TypeError, ValueError), match=message):
        call(lm)


@pytest.mark.parametrize("rngs", [lambda: nnx.Rngs(5), lambda: jax.random.key(5), lambda: 5])
def test_seeds_of_adapters(model, rngs):
    expected = rf.lora(model, 2, "blk.0.attn_q", rngs=5).blk[0].attn_q.lora_a.get_value()
    got = rf.lora(model, 2, "blk.0.attn_q", rngs=rngs()).blk[0].attn_q.lora_a.get_value()
    assert (got == expected).all()


def test_an_adapter_of_another_model(model, tmp_path):
    """The message is short, whatever the number of layers."""
    rf.save_lora(rf.lora(model, 2), tmp_path / "a.gguf")
    other = nnx.clone(model)
    for block in other.blk:
        block.attn_q = Linear(256, 13, rngs=nnx.Rngs(0))
    with pytest.raises(
        ValueError, match=r"4 layers and width 256, 4 problems: .*\[13, 2\]"
    ) as info:
        rf.load_lora(other, tmp_path / "a.gguf")
    assert len(str(info.value)) < 600


def test_adapters_of_flax_are_named(lm, tmp_path):
    model = nnx.clone(lm.model)
    block = model.blk[2]
    n_in, n_out = block.ffn_down.kernel.shape
    block.ffn_down = nnx.LoRA(n_in, 3, n_out, base_module=block.ffn_down, rngs=nnx.Rngs(0))
    by_hand = rf.LanguageModel(model, lm.tokenizer)
    for call in (
        lambda: rf.merge_lora(model),
        lambda: rf.remove_lora(model),
        lambda: rf.save_lora(model, tmp_path / "a.gguf"),
        lambda: rf.save(model, tmp_path / "a.gguf"),
        lambda: rf.save(by_hand, tmp_path / "a.gguf"),
    ):
        with pytest.raises(
            ValueError, match=r"nnx.LoRA blk.2.ffn_down: .* rocmforge_jax.lora only"
        ):
            call()
    adapted = rf.LanguageModel(rf.lora(lm.model, 2), lm.tokenizer)
    with pytest.raises(ValueError, match="merge_lora"):
        rf.save(adapted, tmp_path / "a.gguf")
    with pytest.raises(ValueError, match="keeps no metadata"):
        rf.save(rf.LanguageModel(lm.model, lm.tokenizer), tmp_path / "a.gguf")
    assert not list(tmp_path.iterdir())


def test_files_are_made_alike(lm, tmp_path):
    """In new folders, readable as the umask says, in place of a file of the same name."""
    adapted = rf.lora(lm.model, 2, "blk.0.attn_q")
    mask = os.umask(0o027)
    try:
        for _ in range(2):
            rf.save(lm, tmp_path / "a" / "b" / "model.gguf")
            rf.save(lm.model, tmp_path / "c" / "d" / "model.safetensors")
            rf.save_lora(adapted, tmp_path / "e" / "f" / "adapter.gguf")
            rf.save_lora(adapted, tmp_path / "g" / "peft")
    finally:
        os.umask(mask)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == [
        *("adapter.gguf", "adapter_config.json", "adapter_model.safetensors"),
        *("model.gguf", "model.safetensors"),
    ]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o640}
