"""A decode step of a packed model: no dense weight, no copy of the cache."""

import math
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from rocmforge_jax.quant import QParam


@pytest.fixture
def compiled_step(load, flat, optimised):
    def compiled_step(name, batch, slots=64):
        decoder = load(name)
        leaves, merge = flat(decoder)
        step = jax.jit(
            lambda leaves, cache, tokens: merge(leaves)(tokens, cache, last_only=True),
            donate_argnums=1,
        )
        cache = decoder.init_cache(batch, slots)
        lowered = step.lower(leaves, cache, jnp.zeros((batch, 1), jnp.int32))
        return lowered.compile(optimised), cache, leaves

    return compiled_step


@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.core), 2, 8])
@pytest.mark.parametrize(
    "name", [pytest.param("qwen2.Q5_1", marks=pytest.mark.core), "llama-gqa.Q4_K_M"]
)
def test_no_dense_weight_in_a_step(load, compiled_step, name, batch):
    """All temporaries of a step together are smaller than the largest weight would be in float32,
    let alone all of them.
    """
    compiled, _, _ = compiled_step(name, batch)
    weights = [variable for _, variable in nnx.to_flat_state(nnx.state(load(name), QParam))]
    largest = max(4 * math.prod(weight.get_value().shape) for weight in weights)
    assert len(weights) > 10
    assert compiled.memory_analysis().temp_size_in_bytes < largest


@pytest.mark.core
@pytest.mark.parametrize("batch", [1, 2])
def test_the_cache_is_taken_and_never_copied(compiled_step, batch):
    compiled, cache, _ = compiled_step("qwen2.Q5_1", batch, slots=640)
    assert compiled.memory_analysis().alias_size_in_bytes == cache.nbytes
    shapes = {leaf.shape for layer in cache.layers for leaf in (layer.keys, layer.values)}
    copies = re.findall(r"f32\[([\d,]+)\]\S* (?:copy|transpose)\(", compiled.as_text())
    assert copies and not shapes & {tuple(map(int, copy.split(","))) for copy in copies}


@pytest.mark.core
def test_a_step_of_a_packed_model_has_no_way_to_the_host(compiled_step):
    compiled, _, _ = compiled_step("qwen2.Q5_1", 1)
    assert not re.search("callback|infeed|outfeed|host_compute", compiled.as_text(), re.IGNORECASE)
