"""Layers that gradients compute again: equal gradients, and less is kept for them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import rocmforge_jax as rf

TOKENS = jnp.array(np.random.default_rng(2).integers(0, 45, (1, 61)), jnp.int32)


def loss(model):
    logits = model(TOKENS[:, :-1])[0]
    return optax.softmax_cross_entropy_with_integer_labels(logits, TOKENS[:, 1:]).mean()


def gradients(model):
    grad = nnx.jit(nnx.grad(loss, argnums=nnx.DiffState(0, nnx.LoRAParam)))
    return grad(model)


def kept(model) -> int:
    """Bytes that a forward pass keeps for the gradients of the adapters."""
    graphdef, adapters, others = nnx.split(model, nnx.LoRAParam, ...)

    def forward(adapters, others):
        def of_adapters(adapters):
            return loss(nnx.merge(graphdef, adapters, jax.tree.map(lambda a: a, others)))

        return jax.vjp(of_adapters, adapters)

    _, pullback = jax.eval_shape(forward, adapters, others)
    sizes = [a.size * a.dtype.itemsize for a in jax.tree.leaves(pullback)]
    return sum(sizes) - sum(a.nbytes for a in jax.tree.leaves(others))


@pytest.fixture
def model(decoder, shaken):
    return shaken(rf.lora(decoder(), 2))


@pytest.mark.parametrize("dropout", [False, True])
def test_gradients_are_equal_and_less_is_kept(model, dropout):
    if dropout:  # such a layer is traced by itself
        for block in model.blk:
            drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0), deterministic=True)
            block.ffn_down = nnx.Sequential(block.ffn_down, drop)
    expected, before = gradients(model), kept(model)
    model.remat = True
    for got, wanted in zip(*map(jax.tree.leaves, (gradients(model), expected))):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-7)
        assert np.abs(np.asarray(wanted)).max() > 1e-5
    assert kept(model) < 0.4 * before


def test_a_model_that_computes_again_gives_the_same_logits(model):
    expected = model(TOKENS)[0]
    model.remat = True
    np.testing.assert_array_equal(model(TOKENS)[0], expected)
