"""Files of latent attention whose keys and values are one tensor."""

import dataclasses
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from rocmforge_jax import formats
from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.models import load_decoder, read_config
from tests.models.synthetic import IDS
from tests.models.synthetic_cases import LATENTS
from tests.models.synthetic_shapes import HEADS

pytestmark = pytest.mark.core

(LEGACY,) = LATENTS
RANK, KEYS, VALUES = 32, 6, 8


def shapes_with(rank):
    """The shapes of the case with latents of this rank, so that blocks fit."""
    changed = {
        "attn_kv_b.weight": (HEADS * (KEYS + VALUES), rank),
        "attn_kv_a_mqa.weight": (rank + 4, 48),
        "attn_kv_a_norm.weight": (rank,),
    }
    return {
        name: changed.get(name.split(".", 2)[-1], shape) for name, shape in LEGACY.shapes.items()
    }


CASE = dataclasses.replace(
    LEGACY, shapes=shapes_with(RANK), keys=LEGACY.keys | {"attention.kv_lora_rank": RANK}
)


@pytest.fixture
def file(tmp_path):
    """file(tensors, **keys): the legacy case with these tensors, None for one that it lacks."""

    def file(tensors=(), **keys):
        case = dataclasses.replace(CASE, keys=CASE.keys | keys)
        return case.write(tmp_path / "file.gguf", tensors)

    return file


def load(gguf, **options):
    options = dict(dtype=jnp.float32, backend="xla", activations="float") | options
    return load_decoder(gguf, **options)


def blocks(format):
    """attn_kv_b of each layer in a format: its blocks by heads, and their values."""
    found = []
    for i in range(2):
        weights = CASE.values_of(f"blk.{i}.attn_kv_b.weight")
        packed = np.asarray(formats.quantize(weights, format)).reshape(HEADS, KEYS + VALUES, -1)
        values = np.asarray(formats.dequantize(packed, format)).reshape(*packed.shape[:2], RANK)
        found.append((packed, values))
    return found


@pytest.mark.parametrize("format", ["Q8_0", "Q4_0", "F16"])
@pytest.mark.parametrize("layout", [None, "rows"])
def test_a_split_file_is_the_same(format, layout, file):
    """The values stay packed; the keys, transposed, have the numbers of their blocks."""
    old, new = {}, {}
    for i, (packed, values) in enumerate(blocks(format)):
        typed = packed if format != "F16" else packed.view(np.float16)
        old[f"blk.{i}.attn_kv_b.weight"] = (format, typed.reshape(-1, typed.shape[-1]))
        keys = np.ascontiguousarray(values[:, :KEYS].transpose(0, 2, 1))
        new |= {
            f"blk.{i}.attn_kv_b.weight": None,
            f"blk.{i}.attn_k_b.weight": ("F32", keys),
            f"blk.{i}.attn_v_b.weight": (format, np.ascontiguousarray(typed[:, KEYS:])),
        }
    mla = {"attention.key_length_mla": KEYS + 4, "attention.value_length_mla": VALUES}
    mla |= {"attention.key_length": RANK + 4, "attention.value_length": RANK}
    expected, _ = load(file(new, **mla), layout=layout)(IDS[None, :50])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found, _ = load(file(old), layout=layout)(IDS[None, :50])
    np.testing.assert_array_equal(found, expected)
    told = [str(warning.message) for warning in caught]
    assert len(told) == (format != "F16")
    assert all("attn_kv_b" in text and "2 layers, 0.0 MB" in text for text in told)


def test_packed_values_in_c_plus_plus(file, in_cpp):
    old = {
        f"blk.{i}.attn_kv_b.weight": ("Q8_0", packed.reshape(HEADS * (KEYS + VALUES), -1))
        for i, (packed, _) in enumerate(blocks("Q8_0"))
    }
    with pytest.warns(UserWarning, match="attn_kv_b.* 2 layers"):
        expected, _ = load(file(old))(IDS[None, :50])
    with pytest.warns(UserWarning, match="attn_kv_b.* 2 layers"):
        found, _ = load(file(old), backend="auto", activations="int16")(IDS[None, :50])
    assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)


def test_keys_of_today_beside_a_tensor_of_then(file):
    """The widths are those of the keys that end with _mla, where a file has them."""
    mla = {"attention.key_length_mla": KEYS + 4, "attention.value_length_mla": VALUES}
    mla |= {"attention.key_length": RANK + 4, "attention.value_length": RANK}
    assert read_config(file(**mla))[0] == read_config(file())[0]


def test_matrices_and_keys_that_do_not_fit(file):
    shape = r"blk.0.attn_kv_b.weight has shape \[84, 32\], expected \[78, 32\]"
    with pytest.raises(GGUFError, match=shape):
        load(file(**{"attention.value_length": VALUES - 1}))
    with pytest.raises(GGUFError, match="key_length is 4, of which 4 elements rotate"):
        read_config(file(**{"attention.key_length": 4}))
    with pytest.raises(GGUFError, match="deepseek2.attention.value_length must be"):
        read_config(file(**{"attention.value_length": None}))
    both = {"blk.0.attn_k_b.weight": ("F32", np.zeros((HEADS, RANK, KEYS), np.float32))}
    with pytest.raises(GGUFError, match="blk.0.attn_v_b.weight .* is missing"):
        load(file(both))
