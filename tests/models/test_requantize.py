"""A decoder with its weights dense, or packed in other types, shares all else with the old one."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rocmforge_jax import formats
from rocmforge_jax.gguf import open_gguf
from rocmforge_jax.models import load_decoder, tensor_name
from rocmforge_jax.models.requantize import type_of
from rocmforge_jax.quant import QParam, dequantize, quantize
from tests.models import encoder_files
from tests.models.families import compiled

IDS = np.random.default_rng(3).integers(0, 200, 23).astype(np.int32)[None]


def variables(decoder):
    """The variables of a decoder by their names in files."""
    return {tensor_name(path): variable for path, variable in nnx.to_flat_state(nnx.state(decoder))}


def types(decoder):
    return collections.Counter(type_of(variable) for variable in variables(decoder).values())


@pytest.fixture(scope="module")
def qwen2(reference):
    return load_decoder(
        open_gguf(reference / "models" / "qwen2.Q4_K_M.gguf"),
        dtype=jnp.float32,
        activations="float",
    )


@pytest.mark.parametrize("name", ["models/mixtral.Q4_K_M", "families/qwen35.Q4_K_M"])
def test_dense_weights_give_the_same_logits(name, whole_reference, distance):
    """A mixture, and delta nets beside attention."""
    options = dict(dtype=jnp.float32, activations="float", backend="xla")
    packed = load_decoder(open_gguf(whole_reference / f"{name}.gguf"), **options)
    dense = packed.dequantize()
    assert not [name for name, one in variables(dense).items() if isinstance(one, QParam)]
    first, second = (np.asarray(compiled(one)(None, IDS)[0]) for one in (packed, dense))
    # Float32 sums in another order. A router may choose another expert for single rows.
    rows = [distance(a, b) for a, b in zip(second[0], np.float64(first[0]))]
    assert np.median(rows) < 1e-5


def test_names_choose_what_becomes_dense(qwen2):
    dense = qwen2.dequantize(["blk.*.attn_q", "token_embd"], dtype="bfloat16")
    before, after = variables(qwen2), variables(dense)
    changed = {name for name in before if type_of(before[name]) != type_of(after[name])}
    blocks = len(qwen2.blk)
    assert changed == {"token_embd.weight", *(f"blk.{i}.attn_q.weight" for i in range(blocks))}
    assert {type_of(after[name]) for name in changed} == {"BF16"}
    np.testing.assert_array_equal(
        np.asarray(after["token_embd.weight"].get_value()),
        np.asarray(dequantize(before["token_embd.weight"], jnp.bfloat16)),
    )


def test_the_old_decoder_stays_and_arrays_are_shared(qwen2):
    before = {name: variable.get_value() for name, variable in variables(qwen2).items()}
    dense = variables(qwen2.dequantize("blk.0.ffn_up"))
    for name, variable in variables(qwen2).items():
        assert jax.tree.leaves(variable.get_value())[0] is jax.tree.leaves(before[name])[0]
        shared = jax.tree.leaves(dense[name].get_value())[0] is jax.tree.leaves(before[name])[0]
        assert shared == (name != "blk.0.ffn_up.weight")


def test_the_dtype_is_that_of_the_computation(reference):
    gguf = open_gguf(reference / "models" / "llama-gqa.IQ2_XS.gguf")
    dense = load_decoder(gguf, dtype="float16").dequantize("token_embd")
    assert type_of(dense.token_embd.embedding) == "F16"


def test_a_mapping_gives_each_tensor_the_first_type_that_matches(qwen2):
    new = variables(qwen2.quantize({"*.attn_v": "Q8_0", "token_embd": "F16", "*": "Q5_0"}))
    old = variables(qwen2)
    for name, variable in new.items():
        if isinstance(old[name], QParam):
            kind = {"attn_v.weight": "Q8_0", "token_embd.weight": "F16"}
            end = name if name in kind else name.rpartition(".blk.")[2].split(".", 2)[-1]
            assert type_of(variable) == kind.get(end, "Q5_0"), name
        else:
            assert type_of(variable) == type_of(old[name])


def test_bytes_are_those_of_the_quantiser(qwen2):
    new = qwen2.quantize("Q8_0", "blk.1.ffn_down")
    kernel = qwen2.blk[1].ffn_down.kernel
    expected = formats.quantize(np.asarray(dequantize(kernel)).T.copy(), "Q8_0")
    np.testing.assert_array_equal(
        np.asarray(new.blk[1].ffn_down.kernel.get_value().to_bytes()), expected
    )


def test_a_weight_of_the_type_stays(qwen2):
    kernel = qwen2.blk[0].ffn_up.kernel
    same = qwen2.quantize(kernel.get_value().type_name, "blk.0.ffn_up").blk[0].ffn_up.kernel
    assert jax.tree.leaves(same.get_value())[0] is jax.tree.leaves(kernel.get_value())[0]


def test_routers_are_packed_only_by_name(whole_reference):
    decoder = load_decoder(open_gguf(whole_reference / "models" / "mixtral.Q4_K_M.gguf"))
    router = "blk.0.ffn_gate_inp.weight"
    for kind in ("Q8_0", {"*": "Q8_0"}):
        new = variables(decoder.quantize(kind))
        assert type_of(new[router]) == "F32" and type_of(new["blk.0.ffn_up_exps.weight"]) == "Q8_0"
    assert type_of(variables(decoder.quantize("Q8_0", "*.ffn_gate_inp"))[router]) == "Q8_0"


def test_positions_and_types_of_tokens_are_packed_only_by_name(tmp_path):
    encoder_files.write("bert", tmp_path / "encoder.gguf")
    decoder = load_decoder(open_gguf(tmp_path / "encoder.gguf"))
    tables = "position_embd.weight", "token_types.weight"
    for kind in ("F16", {"*": "F16"}):
        new = variables(decoder.quantize(kind))
        assert [type_of(new[name]) for name in (*tables, "token_embd.weight")] == [
            *("F32", "F32"),
            "F16",
        ]
    new = variables(decoder.quantize("F16", ["position_embd", "token_types"]))
    assert [type_of(new[name]) for name in tables] == ["F16", "F16"]


def test_a_packed_decoder_computes(qwen2, distance):
    """Eight bits for each weight cost 0.5 % a product, which layers add up; wrong ones cost all."""
    first, second = (
        np.asarray(compiled(one)(None, IDS)[0]) for one in (qwen2, qwen2.quantize("Q8_0"))
    )
    assert distance(second, np.float64(first)) < 5e-2


@pytest.mark.parametrize("change", ["dequantize", "quantize"])
def test_a_pattern_without_a_match_is_refused(qwen2, change):
    arguments = () if change == "dequantize" else ("Q8_0",)
    with pytest.raises(ValueError, match=r"'blk\.\*\.atn_q'.*'blk\.\*\.attn_q'"):
        getattr(qwen2, change)(*arguments, names="blk.*.atn_q")


def test_rows_of_part_of_a_block_are_listed(small_file):
    decoder = load_decoder(small_file())
    with pytest.raises(
        ValueError, match=r"7 with rows of 32, Q4_K blocks of 256: .* and 3 more; 1 with rows of 64"
    ):
        decoder.quantize("Q4_K")
    with pytest.raises(ValueError, match=r"1 with rows of 64, IQ4_XS blocks.*ffn_down"):
        decoder.quantize({"*.ffn_down": "IQ4_XS", "*": "Q4_0"})


def test_types_without_a_quantiser_are_refused(qwen2):
    with pytest.raises(NotImplementedError, match="IQ2_XS"):
        qwen2.quantize("IQ2_XS", "blk.0.ffn_up")
    with pytest.raises(ValueError, match="'Q9_Z'"):
        qwen2.quantize("Q9_Z")


VALUES = np.random.default_rng(8).normal(size=(3, 5, 64)).astype(np.float32)


@pytest.mark.parametrize("wrap", [np.asarray, jnp.asarray, lambda a: nnx.Param(jnp.asarray(a))])
def test_an_array_becomes_a_qtensor(wrap):
    packed = quantize(wrap(VALUES), "q5_1")
    assert packed.shape == VALUES.shape and packed.type_name == "Q5_1" and not packed.transposed
    np.testing.assert_array_equal(packed.to_bytes(), formats.quantize(VALUES, "Q5_1"))


def test_a_kernel_is_packed_along_its_inputs():
    kernel = np.swapaxes(VALUES, -1, -2)
    packed = quantize(jnp.asarray(kernel, jnp.bfloat16), "Q8_0", transposed=True)
    assert packed.shape == kernel.shape and packed.transposed
    rows = np.asarray(jnp.asarray(VALUES, jnp.bfloat16))
    np.testing.assert_array_equal(packed.to_bytes(), formats.quantize(rows, "Q8_0"))
    again = quantize(QParam(packed), "Q4_0")
    assert again.transposed and again.shape == kernel.shape


@pytest.mark.parametrize(
    ("array", "kind", "message"),
    [
        (VALUES, "F16", "F16 is not quantised"),
        (VALUES[0, 0], "Q8_0", r"Q8_0 matrix .* got \[64\]"),
        (VALUES, "Q6_K", "Q6_K row .* 256 elements, got 64"),
        (VALUES.astype(np.int8), "Q8_0", "float32, .* got int8"),
    ],
)
def test_what_is_no_matrix_of_whole_blocks_is_refused(array, kind, message):
    with pytest.raises(ValueError, match=message):
        quantize(array, kind)
