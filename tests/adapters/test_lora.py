"""Adapters around packed layers: nothing else changes, and nothing else is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import rocmforge_jax as rf
from rocmforge_jax.adapters.wrap import adapters
from rocmforge_jax.generate import Engine, SamplingParams
from rocmforge_jax.models import Layer, tensor_name
from rocmforge_jax.nn import LoRALinear

TOKENS = jnp.array(np.random.default_rng(1).integers(0, 45, (2, 11)), jnp.int32)
ATTENTION = {"attn_q", "attn_k", "attn_v", "attn_output"}
ALL = ATTENTION | {"ffn_gate", "ffn_up", "ffn_down"}


def logits(model):
    return np.asarray(jax.jit(lambda model: model(TOKENS)[0])(model))


def planes(model):
    return [np.asarray(a) for a in jax.tree.leaves(nnx.state(model, rf.QParam))]


def loss(model):
    chosen = optax.softmax_cross_entropy_with_integer_labels(
        model(TOKENS[:, :-1])[0], TOKENS[:, 1:]
    )
    return chosen.mean()


@pytest.mark.parametrize(
    "names, adapted", [(None, ATTENTION), (True, ALL), ("*.ffn_*", ALL - ATTENTION)]
)
def test_chosen_layers_get_an_adapter(decoder, names, adapted):
    found = adapters(rf.lora(decoder(), 3, names))
    assert set(found) == {f"blk.{i}.{name}.weight" for i in range(3) for name in adapted}
    layer = found["blk.1.ffn_down.weight" if "ffn_down" in adapted else "blk.1.attn_output.weight"]
    n_in = layer.base_module.kernel.shape[0]
    assert layer.lora_a.shape == (n_in, 3) and layer.lora_b.shape == (3, 64)
    assert not layer.lora_b.get_value().any()
    a = np.asarray(layer.lora_a.get_value())
    assert 0.8 * n_in**-0.5 < np.abs(a).max() < n_in**-0.5 and abs(a.mean()) < 0.3 * n_in**-0.5


@pytest.mark.parametrize("library", ["in C++", "in plain XLA"])
def test_a_fresh_adapter_changes_no_bit(decoder, library, request):
    if library == "in C++":
        request.getfixturevalue("in_cpp")
    plain = decoder("Q8_0")
    expected = logits(plain)
    adapted = rf.lora(plain, 4)
    np.testing.assert_array_equal(logits(adapted), expected)
    np.testing.assert_array_equal(logits(plain), expected)
    # The activation function of adapted gates is XLA's, not the kernel's.
    np.testing.assert_allclose(logits(rf.lora(plain, 4, True)), expected, rtol=0, atol=2e-4)
    for old, new in zip(jax.tree.leaves(nnx.state(plain, rf.QParam)), planes_of(adapted)):
        assert old is new


def planes_of(model):
    return jax.tree.leaves(nnx.state(model, rf.QParam))


@pytest.mark.parametrize("type_name", ["Q5_1", None])
@pytest.mark.parametrize("gated", [{}, {"gated": False}], ids=["gated", "not gated"])
def test_an_adapted_model_computes_with_the_sum_of_its_matrices(decoder, shaken, type_name, gated):
    plain = decoder(type_name, gated=gated)
    adapted = shaken(rf.lora(plain, 3, True, alpha=7.5))
    summed = nnx.clone(plain)
    for name, layer in adapters(adapted).items():
        _, i, of_layer, _ = name.split(".")
        kernel = layer.base_module.kernel
        dense = rf.dequantize(kernel) if type_name else kernel.get_value()
        a, b = (np.asarray(m.get_value(), np.float64) for m in (layer.lora_a, layer.lora_b))
        weight = np.asarray(dense, np.float64) + 7.5 / 3 * a @ b
        getattr(summed.blk[int(i)], of_layer).kernel = nnx.Param(jnp.asarray(weight, jnp.float32))
    np.testing.assert_allclose(logits(adapted), logits(summed), rtol=0, atol=1e-4)
    assert np.abs(logits(adapted) - logits(plain)).max() > 0.1


def test_the_layer_is_base_plus_scaled_product(decoder, shaken, normal):
    layer = shaken(rf.lora(decoder(None), 5, "blk.0.attn_k", alpha=2)).blk[0].attn_k
    x = normal(7, 64)
    a, b, kernel = (
        np.asarray(v.get_value(), np.float64)
        for v in (layer.lora_a, layer.lora_b, layer.base_module.kernel)
    )
    expected = x @ kernel + 2 / 5 * (x @ a) @ b
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, rtol=0, atol=1e-5)
    assert (layer.rank, layer.scale) == (5, 0.4)
    assert layer(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16
    assert layer(jnp.asarray(x, jnp.bfloat16), jnp.float32).dtype == jnp.float32


def test_adapters_alone_are_trained(decoder):
    plain = decoder()
    model = rf.lora(plain, 4, rngs=1)
    before, norms = planes(model), np.asarray(model.output_norm.scale.get_value())
    with jax.numpy_dtype_promotion("standard"):
        optimizer = nnx.Optimizer(model, optax.adam(0.03), wrt=nnx.LoRAParam)

        @nnx.jit
        def step(model, optimizer):
            value, gradients = nnx.value_and_grad(loss, argnums=nnx.DiffState(0, nnx.LoRAParam))(
                model
            )
            optimizer.update(model, gradients)
            return value

        losses = [float(step(model, optimizer)) for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]
    for old, new in zip(before, planes(model)):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(model.output_norm.scale.get_value(), norms)
    assert all(np.asarray(layer.lora_b.get_value()).any() for layer in adapters(model).values())
    np.testing.assert_array_equal(logits(rf.remove_lora(model)), logits(plain))


def test_layers_are_traced_once(decoder, monkeypatch):
    calls, call = [], Layer.__call__
    monkeypatch.setattr(Layer, "__call__", lambda *args: calls.append(1) or call(*args))
    model = rf.lora(decoder(), 4, True)
    jax.clear_caches()
    jax.make_jaxpr(lambda model: model(TOKENS)[0])(model)
    assert len(calls) == 1


def test_the_program_is_hardly_longer(decoder):
    def lines(model):
        return len(
            jax.jit(nnx.grad(loss, argnums=nnx.DiffState(0, nnx.Param)))
            .lower(model)
            .as_text()
            .splitlines()
        )

    plain = decoder()
    assert lines(rf.lora(plain, 4)) < 1.5 * lines(plain)


def test_seeds_draw_different_adapters(decoder):
    plain = decoder()

    def first(rngs):
        return np.asarray(rf.lora(plain, 2, rngs=rngs).blk[0].attn_q.lora_a.get_value())

    np.testing.assert_array_equal(first(0), first(0))
    np.testing.assert_array_equal(first(3), first(nnx.Rngs(3)))
    assert not np.array_equal(first(0), first(1))
    bf16 = rf.lora(plain, 2, dtype=jnp.bfloat16).blk[0].attn_q
    assert bf16.lora_a.dtype == bf16.lora_b.dtype == jnp.bfloat16


def test_names_and_repr(decoder):
    model = rf.lora(decoder(), 4, "blk.0.attn_q", alpha=6)
    paths = [tensor_name(path) for path, _ in nnx.to_flat_state(nnx.state(model.blk[0].attn_q))]
    assert tensor_name(("blk", 0, "attn_q", "base_module", "kernel")) == "blk.0.attn_q.weight"
    assert tensor_name(("blk", 0, "attn_q", "lora_b")) == "blk.0.attn_q.weight.lora_b"
    assert len(paths) == 3
    assert "rank 4, alpha 6, 512 parameters" in repr(model.blk[0].attn_q)


def test_an_engine_takes_adapters(decoder, shaken):
    plain = decoder()

    def ids(engine):
        steps = engine.generate([[1, 2, 3]], SamplingParams(temperature=0), max_tokens=6)
        return [id for step in steps for new in step for id in new.ids]

    expected = ids(Engine(plain))
    engine = Engine(rf.lora(plain, 4))
    assert ids(engine) == expected
    engine.use(shaken(rf.lora(plain, 4)))
    assert ids(engine) != expected


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((0,), ValueError, "rank.*at least 1.*0"),
        ((2.5,), ValueError, "rank.*2.5"),
        ((10**9,), ValueError, "rank=1000000000 is more than \\d+, .* \\d+ layers"),
        ((4, "blk.*.attn_x"), ValueError, r"attn_x.*blk\.\*\.attn_k"),
        ((4, "*.attn_norm"), ValueError, "attn_norm"),
        ((4, "token_embd"), ValueError, "token_embd"),
        ((4, False), ValueError, r"no layer.*blk\.0\.attn_k"),
        ((4, [1]), TypeError, "int"),
    ],
)
def test_what_is_wrong_is_refused(decoder, arguments, error, message):
    with pytest.raises(error, match=message):
        rf.lora(decoder(), *arguments)


def test_other_models_dtypes_and_adapted_layers_are_refused(decoder):
    model = decoder()
    with pytest.raises(TypeError, match="Decoder.*LanguageModel.*model"):
        rf.lora(rf.load("demo", progress=False), 4)
    with pytest.raises(ValueError, match="int32"):
        rf.lora(model, 4, dtype=jnp.int32)
    with pytest.raises(ValueError, match="rngs.*-1"):
        rf.lora(model, 4, rngs=-1)
    adapted = rf.lora(model, 4, "blk.0.attn_q")
    with pytest.raises(ValueError, match=r"blk\.0\.attn_q\.weight.*already"):
        rf.lora(adapted, 4)
    both = rf.lora(adapted, 2, "blk.1.attn_q")
    assert isinstance(both.blk[0].attn_q, LoRALinear) and both.blk[1].attn_q.rank == 2
