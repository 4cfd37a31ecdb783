"""Logits against llama.cpp's on the same weights, dequantised to float32; prompts of 600 tokens.

Files of variants of Llama, in many types; `test_families` has the other architectures.
"""

import jax.numpy as jnp
import numpy as np
import pytest

CORE = (
    "llama-gqa.Q4_1",
    "llama-gqa.IQ2_XS",
    "llama-mqa.Q5_0",
    "llama-rope3.Q5_1",
    "qwen2.Q4_K_M",
    "qwen2.Q5_1",
    "mixtral.Q4_K_M",
)
OTHERS = (
    "llama-gqa.F32",
    "llama-gqa.Q4_0",
    "llama-gqa.Q5_0",
    "llama-gqa.Q5_1",
    "llama-gqa.Q8_0",
    "llama-gqa.Q2_K",
    "llama-gqa.Q4_K_M",
    "llama-gqa.Q6_K",
    "llama-gqa.IQ4_XS",
    "llama-gqa.TQ2_0",
    "mistral-swa.Q4_0",
    "qwen3.Q4_1",
    "qwen3.Q8_0",
    "glm4.Q5_1",
    "glm4.Q4_K_M",
    "chatglm.Q4_K_M",
    "qwen2moe.Q4_K_M",
    "qwen3moe.Q4_K_M",
)


def error(name, dtype, load, logits, relative, index, reference):
    got = logits(load(name, dtype), np.array(index["ids"], np.int32)[None])[0, index["rows"]]
    return relative(got, np.load(reference / "models" / f"{name}.npy"))


@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.core) for name in CORE), *OTHERS]
)
def test_float32_logits_are_llama_cpp_s(name, load, logits, relative, index, reference):
    assert error(name, jnp.float32, load, logits, relative, index, reference) < 1e-5


def test_bfloat16_logits_are_near(load, logits, relative, index, reference):
    assert (
        1e-4
        < error("llama-gqa.Q8_0", jnp.bfloat16, load, logits, relative, index, reference)
        < 2e-2
    )
