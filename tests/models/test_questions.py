"""What a user asks of packed parameters, models and caches, and adapters of a tied embedding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rocmforge_jax as rf

pytestmark = pytest.mark.core
TOKENS = jnp.array([[1, 2, 3]], jnp.int32)


@pytest.fixture
def model():
    return rf.load("demo", progress=False).model


class Wrapped(nnx.Module):
    """A tied embedding in an adapter."""

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, tokens, dtype):
        return self.inner(tokens, dtype)


class Tied(Wrapped):
    """One that also computes the head, three times over."""

    def attend(self, x):
        return 3 * self.inner.attend(x)


def test_a_packed_parameter_answers_or_names_the_remedy(model):
    kernel = model.blk[0].attn_q.kernel
    assert list(map(id, kernel[...].planes.values())) == list(
        map(id, kernel.get_value().planes.values())
    )
    assert kernel.size == kernel.get_value().size == 256 * 256
    for name, remedy in (("dtype", "type_name"), ("sharding", "planes"), ("at", "dequantize")):
        assert not hasattr(kernel.get_value(), name)
        with pytest.raises(AttributeError, match=f"{name}.*{remedy}"):
            getattr(kernel.get_value(), name)
    with pytest.raises(TypeError, match="Q5_0.*take_rows.*dequantize"):
        kernel[0]


def test_reprs_count_weights_and_are_short(model):
    value = model.blk[0].attn_q.kernel.get_value()
    assert f"# Q5_0, 65,536 weights, {value.nbytes:,} B" in repr(model.blk[0].attn_q.kernel)
    shapes = jax.eval_shape(lambda w: w, model.blk[0].attn_q)
    assert "65,536 weights" in repr(shapes.kernel)
    assert "0 to 3: Layer(" in repr(model) and len(repr(model)) < 4000
    cache = model.init_cache(2, 64)
    assert repr(cache) == f"Cache(batch=2, length=64, tokens=[0, 0], 4 layers, {cache.nbytes:,} B)"
    assert "P('data'" in repr(cache.specs(jax.make_mesh((1,), ("data",))))


def test_a_tied_embedding_may_be_wrapped(model):
    before, embedding = model(TOKENS)[0], model.token_embd
    assert model.output is None
    model.token_embd = Tied(embedding)
    np.testing.assert_allclose(model(TOKENS)[0], 3 * before, rtol=1e-4, atol=1e-4)
    model.token_embd = Wrapped(embedding)
    with pytest.raises(TypeError, match=r"Wrapped.*attend\(x\)"):
        model(TOKENS)
