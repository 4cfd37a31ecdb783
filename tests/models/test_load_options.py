"""Options of `load`: the device, the first layers, dense tensors, the dtype of caches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rocmforge_jax as rf
from rocmforge_jax.locate import DEMO
from rocmforge_jax.models import load_decoder, tensor_name
from rocmforge_jax.quant import QTensor
from tests.models.synthetic_cases import CASES, GEMMA3N

TOKENS = jnp.array([[3, 1, 4, 1, 5, 9, 2, 6, 5]], jnp.int32)


def loaded(**options):
    return rf.load("demo", progress=False, activations="float", **options)


def values(model):
    """The name of each tensor -> its value."""
    return {
        tensor_name((*path, attribute)): variable.get_value()
        for path, module in nnx.iter_modules(model)
        for attribute, variable in vars(module).items()
        if isinstance(variable, nnx.Variable)
    }


@pytest.fixture(scope="module")
def lm():
    return loaded()


@pytest.mark.core
def test_tensors_that_a_pattern_names_are_dense(lm):
    patterns = ["blk.*.ffn_*", "token_embd"]
    packed, model = values(lm.model), loaded(dequantize=patterns).model
    dense = {name for name, value in packed.items() if isinstance(value, QTensor)}
    dense = {name for name in dense if "ffn_" in name or name == "token_embd.weight"}
    assert len(dense) > 6
    for name, value in values(model).items():
        if name in dense:
            assert value.dtype == jnp.float32
            np.testing.assert_array_equal(value, rf.dequantize(packed[name]))
        else:
            assert isinstance(value, QTensor) == isinstance(packed[name], QTensor)
    np.testing.assert_allclose(model(TOKENS)[0], lm.model(TOKENS)[0], atol=1e-4)


@pytest.mark.core
def test_all_tensors_are_dense_in_the_dtype_of_the_model(lm):
    for name, value in values(loaded(dequantize=True, dtype="bf16").model).items():
        packed = values(lm.model)[name]
        if isinstance(packed, QTensor):
            expected = rf.dequantize(packed, jnp.bfloat16)
            np.testing.assert_array_equal(value, expected, err_msg=name)
        else:
            assert value.dtype == packed.dtype


@pytest.mark.core
def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(ValueError, match="ffn_dwn.*ffn_down.*blk...attn_k"):
        loaded(dequantize="blk.*.ffn_dwn")


@pytest.mark.core
@pytest.mark.parametrize("patterns", [3, ["token_embd", 4], {"a": 1}.get])
def test_patterns_are_texts(patterns):
    with pytest.raises(TypeError, match="pattern.*(int|builtin)"):
        rf.load("no such file", dequantize=patterns)


@pytest.mark.core
def test_the_first_layers_compute_what_they_compute_in_the_whole_model(lm):
    """The head reads the residual stream after the second layer."""
    model = loaded(layers=2).model
    assert len(model.config.layers) == len(model.blk) == 2
    seen = {}

    def keep(x):
        seen["x"] = x
        return x

    whole = nnx.clone(lm.model)
    third = type(whole.blk[2])
    original = third.__call__

    def watched(self, x_BTD, *others):
        if self is whole.blk[2]:
            keep(x_BTD)
        return original(self, x_BTD, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rocmforge_jax.models.decoder.shared_trace", lambda layer, *a, **_: layer(*a))
        patch.setattr(third, "__call__", watched)
        whole(TOKENS)
    np.testing.assert_allclose(model(TOKENS)[0], lm.model.head(seen["x"]), rtol=1e-4, atol=1e-4)
    assert len(model.init_cache(1, 8).layers) == 2


@pytest.mark.core
def test_generation_and_plan_count_the_first_layers(lm):
    one = loaded(layers=1)
    assert one.generate("a", max_tokens=2, temperature=0).ids
    plans = []
    for options in ({}, {"layers": 1}, {"dequantize": True}):
        load_decoder(
            rf.open_gguf(DEMO), before_reading=lambda _, weights: plans.append(weights), **options
        )
    gguf = rf.open_gguf(DEMO)
    later = [
        t.nbytes for name, t in gguf.tensors.items() if name[:5] in ("blk.1", "blk.2", "blk.3")
    ]
    assert plans[0] == sum(tensor.nbytes for tensor in gguf.tensors.values())
    assert plans[1] == plans[0] - sum(later)
    everything = values(loaded(dequantize=True).model).values()
    assert plans[2] == sum(array.nbytes for array in everything)


@pytest.mark.core
@pytest.mark.parametrize("layers", [0, -1, 2.5, "two"])
def test_a_number_of_layers_is_an_integer_from_1(layers):
    with pytest.raises(ValueError, match="layers"):
        rf.load("no such file", layers=layers)


@pytest.mark.core
def test_more_layers_than_there_are_are_refused(lm):
    there = len(lm.model.config.layers)
    with pytest.raises(ValueError, match=f"{there} layers.*{there + 1}"):
        loaded(layers=there + 1)
    with pytest.raises(ValueError, match="layers=2.*nextn"):
        rf.load("no such file", layers=2, nextn=True)


def test_layers_before_blocks_of_multi_token_prediction(tmp_path):
    """Those that nobody asked for are no blocks of prediction, and these still are."""
    case = next(case for case in CASES if case.name == "qwen35-nextn")
    gguf = case.write(tmp_path / "model.gguf")
    with pytest.warns(UserWarning, match=r"tensors of 1 blocks"):
        decoder = load_decoder(gguf, layers=1)
    assert len(decoder.config.layers) == 1


def test_inputs_of_all_layers_in_one_tensor_are_not_cut(tmp_path):
    gguf = GEMMA3N.write(tmp_path / "model.gguf")
    with pytest.raises(ValueError, match="25 layers.*layers=3"):
        load_decoder(gguf, layers=3)


@pytest.mark.core
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_cache_has_a_dtype_of_its_own(lm, dtype):
    other = loaded(cache_dtype=dtype)
    cache, exact = (one.model.init_cache(1, 16) for one in (other, lm))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(cache.layers)} == {dtype}
    assert 2 * (cache.nbytes - 4) == exact.nbytes - 4
    logits, after = other.model(TOKENS, cache)
    assert logits.dtype == jnp.float32
    assert after.layers[0].keys.dtype == dtype
    expected, _ = lm.model(TOKENS, exact)
    error = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
    assert 0 < error < 1e-2
    assert other.engine.prefill([[1, 2, 3]])[1].layers[0].values.dtype == dtype


@pytest.mark.core
def test_a_cache_holds_no_integers(lm):
    with pytest.raises(ValueError, match="a cache holds float32, bfloat16, float16, got 'int8'"):
        rf.load("no such file", cache_dtype="int8")
    with pytest.raises(ValueError, match="a cache holds float32, bfloat16, float16, got int8"):
        lm.model.init_cache(1, 8, jnp.int8)


@pytest.mark.core
@pytest.mark.parametrize("device", ["cpu", "cpu:0", "CPU:0"])
def test_a_device_by_name(device):
    first = jax.local_devices(backend="cpu")[0]
    array = loaded(device=device).model.output_norm.scale.get_value()
    assert array.committed and array.devices() == {first}


@pytest.mark.core
@pytest.mark.parametrize("device", ["cpu:99", "tpu", "", "cpu:x", "cpu:-1", ":0", "cpu:"])
def test_devices_that_are_not_there(device):
    if device == "cpu:":
        device = "cpu:1.5"
    with pytest.raises(ValueError, match=f"{device}.*cpu:0"):
        rf.load("no such file", device=device)


@pytest.mark.core
def test_a_device_is_no_number():
    with pytest.raises(TypeError, match="device.*0"):
        rf.load("no such file", device=0)


@pytest.mark.core
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dequantize": "*.ffn_*", "layers": 2, "dtype": "bf16"},
        {"device": "cpu", "backend": "xla"},
    ],
    ids=str,
)
def test_an_abstract_decoder_is_a_loaded_one_without_arrays(options):
    def described(tree):
        return jax.tree.map(lambda a: (a.shape, a.dtype), tree)

    abstract, model = rf.load_abstract(**options), rf.load(progress=False, **options).model
    leaves = jax.tree.leaves(nnx.state(abstract))
    assert {type(leaf) for leaf in leaves} == {jax.ShapeDtypeStruct}
    assert described(nnx.state(abstract)) == described(nnx.state(model))
    assert nnx.graphdef(abstract) == nnx.graphdef(model)
    if "device" in options:
        assert {a.sharding for a in leaves} == {model.output_norm.scale.get_value().sharding}


@pytest.mark.core
def test_an_abstract_decoder_reads_no_weights(monkeypatch):
    monkeypatch.setattr("rocmforge_jax.gguf.tensors.TensorInfo.data", property(lambda _: 1 / 0))
    assert isinstance(rf.load_abstract(dequantize="*.ffn_up").token_embd.embedding, rf.QParam)
    with pytest.raises(ZeroDivisionError):
        rf.load(progress=False)


@pytest.mark.core
def test_an_abstract_decoder_takes_what_load_takes():
    import inspect

    of_load = inspect.signature(rf.load).parameters.keys() - {"progress"}
    assert inspect.signature(rf.load_abstract).parameters.keys() == of_load
    with pytest.raises(TypeError, match="load_abstract.*3"):
        rf.load_abstract(3)
    with pytest.raises(FileNotFoundError):
        rf.load_abstract("no such file")
