"""Errors of quantisation beside float64."""

import numpy as np
import pytest
from flax import nnx

import rocmforge_jax as rf
from rocmforge_jax.explore import weights
from rocmforge_jax.gguf import write_gguf

NAMES = ("blk.0.attn_q.weight", "blk.1.attn_q.weight", "output_norm.weight")


@pytest.fixture
def files(tmp_path, normal):
    """A file of F32, and one of the same tensors in other types."""
    dense = {name: normal(70, 96, seed=i) for i, name in enumerate(NAMES[:2])}
    dense[NAMES[2]] = normal(96)
    types = dict(zip(NAMES, ("Q4_0", "Q8_0", "F32")))
    write_gguf(tmp_path / "dense.gguf", {}, {k: ("F32", v) for k, v in dense.items()})
    packed = {name: rf.formats.quantize(dense[name], types[name]) for name in NAMES[:2]}
    written = {name: (types[name], data) for name, data in packed.items()}
    extra = {"more": ("F32", dense[NAMES[2]]), NAMES[2]: ("F32", dense[NAMES[2]])}
    write_gguf(tmp_path / "packed.gguf", {}, written | extra)
    return tmp_path / "packed.gguf", tmp_path / "dense.gguf", dense, packed


def check(found, i, values, right):
    off = values.astype(np.float64) - right
    assert np.isclose(found.rmse[i], np.sqrt(np.square(off).mean()), rtol=1e-12)
    assert found.largest[i] == np.abs(off).max()
    relative = np.linalg.norm(off) / np.linalg.norm(right.astype(np.float64))
    assert np.isclose(found.relative[i], relative, rtol=1e-12)
    assert np.isclose(found.snr[i], -20 * np.log10(relative), rtol=1e-12)


@pytest.mark.parametrize("chunk", [1 << 21, 1000])
def test_files_are_compared_tensor_by_tensor(files, chunk, monkeypatch):
    monkeypatch.setattr(weights, "CHUNK", chunk)
    packed, dense, values, blocks = files
    found = rf.explore.quantization_error(packed, rf.open_gguf(dense))
    assert found.names == NAMES and found.other_types == ("F32",) * 3
    assert found.types == ("Q4_0", "Q8_0", "F32") and found.shapes[0] == (70, 96)
    for i, name in enumerate(NAMES[:2]):
        check(
            found, i, np.asarray(rf.formats.dequantize(blocks[name], found.types[i])), values[name]
        )
    assert (found.rmse[2], found.largest[2], found.relative[2], found.snr[2]) == (0, 0, 0, np.inf)
    assert "Q4_0 / F32" in repr(found) and NAMES[1] in found._repr_html_()
    one = rf.explore.quantization_error(packed, dense, names="blk.1.*")
    assert one.names == NAMES[1:2] and one.rmse[0] == found.rmse[1]


def test_tensors_and_arrays_are_compared(files):
    packed, dense, values, blocks = files
    info, right = rf.open_gguf(packed).tensors[NAMES[0]], values[NAMES[0]]
    w = rf.QTensor.from_bytes(blocks[NAMES[0]], "Q4_0")
    dequantized = np.asarray(rf.dequantize(w))
    for tensor, other in (
        (info, dense),
        (info, right),
        (w, right),
        (rf.QParam(w), nnx.Param(right)),
        (rf.QParam(w.T), right.T),
        (dequantized, rf.open_gguf(dense).tensors[NAMES[0]]),
    ):
        found = rf.explore.quantization_error(tensor, other)
        assert len(found) == 1
        check(found, 0, dequantized, right)
    zeros = rf.explore.quantization_error(np.ones(3, np.float32), np.zeros(3, np.float32))
    assert zeros.relative[0] == np.inf and zeros.snr[0] == -np.inf
    broken = rf.explore.quantization_error(np.array([np.nan, 1]), np.array([2.0, 1]))
    assert np.isnan([broken.rmse[0], broken.largest[0], broken.snr[0]]).all()


def test_what_cannot_be_compared_is_named(files, tmp_path):
    packed, dense, values, _ = files
    file = rf.open_gguf(packed)
    with pytest.raises(TypeError, match="file is compared with a file"):
        rf.explore.quantization_error(packed, values[NAMES[0]])
    with pytest.raises(TypeError, match="looked up in a file"):
        rf.explore.quantization_error(values[NAMES[0]], dense)
    with pytest.raises(TypeError, match="tensors, arrays and files, got 5"):
        rf.explore.quantization_error(5, dense)
    with pytest.raises(KeyError, match="more"):
        rf.explore.quantization_error(file.tensors["more"], dense)
    with pytest.raises(ValueError, match=r"output_norm.weight .*\[96\].*\[70, 96\]"):
        rf.explore.quantization_error(file.tensors[NAMES[2]], values[NAMES[0]])
    with pytest.raises(ValueError, match="'ffn'.*attn_q"):
        rf.explore.quantization_error(packed, dense, names="ffn")
    write_gguf(tmp_path / "other.gguf", {}, {"a": ("F32", np.ones(3, np.float32))})
    with pytest.raises(ValueError, match="packed.gguf and .*other.gguf share no"):
        rf.explore.quantization_error(packed, tmp_path / "other.gguf")
    with pytest.raises(FileNotFoundError, match="missing.gguf"):
        rf.explore.quantization_error(packed, tmp_path / "missing.gguf")
