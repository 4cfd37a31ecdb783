"""Metadata that describes no model: each refusal is a GGUFError with both numbers, at once,
whatever the sizes.
"""

import numpy as np
import pytest

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.models import Attention, DecoderConfig, Gated, Mixture, load_decoder
from rocmforge_jax.nn import RopeConfig, Routing

pytestmark = pytest.mark.core

SIZES = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
)
HUGE = 2**31 - 1
EPSILON = "attention.layer_norm_rms_epsilon"


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize(
    ("value", "found"),
    [
        (0, "0"),
        (np.int32(-8), "-8"),
        (np.uint64(2**63), str(2**63)),
        (np.float32(4), "4.0"),
        (np.float32(np.nan), "nan"),
        (True, "True"),
        ("4", "'4'"),
        ([1, 2], "an array of 2"),
        (["a"], "an array of 1"),
    ],
    ids=str,
)
def test_sizes_that_are_none(small_file, key, value, found):
    with pytest.raises(
        GGUFError, match=rf"llama\.{key} must be an integer from 1 to {HUGE}.* the file has {found}"
    ):
        load_decoder(small_file(keys={f"llama.{key}": value}))


@pytest.mark.parametrize("key", [key for key in SIZES if not key.endswith("kv")])
def test_sizes_that_are_missing(small_file, key):
    with pytest.raises(GGUFError, match=rf"llama\.{key} must be .* the file has no such key"):
        load_decoder(small_file(keys={f"llama.{key}": None}))


@pytest.mark.parametrize("key", [key for key in SIZES if key != "context_length"])
def test_sizes_that_are_huge_are_refused_at_once(small_file, key):
    """Nothing is built of a size that the tensors contradict: there are 11 tensors, none wider than
    64.
    """
    with pytest.raises(GGUFError, match=str(HUGE)):
        load_decoder(small_file(keys={f"llama.{key}": HUGE, "llama.attention.key_length": 8}))


def test_products_of_sizes_that_are_huge(small_file):
    even = HUGE - 1
    keys = {
        "embedding_length": even,
        "attention.head_count": even,
        "attention.head_count_kv": even,
        "attention.key_length": even,
    }
    with pytest.raises(GGUFError, match=rf"expected \[{even * even}, {even}\]"):
        load_decoder(small_file(keys={f"llama.{key}": value for key, value in keys.items()}))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"attention.head_count_kv": 3}, "4 heads and 3 KV heads: heads must be a multiple"),
        ({"attention.head_count_kv": 8}, "4 heads and 8 KV heads: heads must be a multiple"),
        ({"attention.head_count": 1}, "1 heads and 2 KV heads: heads must be a multiple"),
        (
            {"attention.head_count": 6},
            "width 32 is not a multiple of 6 heads, and there is no attention.key_length",
        ),
        ({"attention.head_count": 32}, "rope width must be even and at least 2, got 1"),
        ({"attention.key_length": 16}, r"attn_q.weight has shape \[32, 32\], expected \[64, 32\]"),
        ({"attention.value_length": 4}, "keys are 8 wide and values 4"),
        ({"vocab_size": "48"}, "llama.vocab_size must be an integer"),
        ({"rope.dimension_count": 16}, "rope rotates 16 elements of a head of 8"),
        ({"rope.dimension_count": 7}, "rope width must be even and at least 2, got 7"),
        ({"rope.dimension_count": 0}, "llama.rope.dimension_count must be an integer from 1"),
        (
            {"rope.freq_base": 0.0},
            "llama.rope.freq_base must be a finite number above 0.0, the file has 0.0",
        ),
        (
            {"rope.freq_base": np.float32(-1)},
            "rope.freq_base must be a finite number above 0.0, the file has -1.0",
        ),
        (
            {"rope.freq_base": np.float32(np.inf)},
            "rope.freq_base must be a finite number above 0.0, the file has inf",
        ),
        (
            {EPSILON: np.float32(np.nan)},
            "rms_epsilon must be a finite number from 0.0, the file has nan",
        ),
        (
            {EPSILON: np.float32(-1)},
            "rms_epsilon must be a finite number from 0.0, the file has -1.0",
        ),
        ({EPSILON: "1e-5"}, "rms_epsilon must be a finite number from 0.0, the file has '1e-5'"),
        ({EPSILON: True}, "rms_epsilon must be a finite number from 0.0, the file has True"),
        (
            {EPSILON: [1e-5, 2e-5]},
            "rms_epsilon must be a finite number from 0.0, the file has an array of 2",
        ),
        ({EPSILON: None}, "rms_epsilon must be .* the file has no such key"),
        (
            {"rope.scaling.type": "ntk"},
            "rope scaling 'ntk' is not supported, only none, linear, yarn, longrope",
        ),
        ({"rope.scaling.type": 1}, "llama.rope.scaling.type must be a string, the file has 1"),
        (
            {"rope.scaling.type": "linear", "rope.scaling.factor": -2.0},
            "scaling.factor must be a finite number from 0.0, the file has -2.0",
        ),
        (
            {"expert_count": 2, "expert_used_count": 3},
            "llama.expert_used_count must be an integer from 1 to 2, the file has 3",
        ),
        (
            {"expert_count": 2},
            "llama.expert_used_count must be an integer from 1 to 2, the file has no such key",
        ),
        ({"expert_count": HUGE, "expert_used_count": 2}, str(HUGE)),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_values_that_contradict_each_other(small_file, keys, message):
    with pytest.raises(GGUFError, match=message):
        load_decoder(small_file(keys={f"llama.{key}": value for key, value in keys.items()}))


@pytest.mark.parametrize(
    "key", ["feed_forward_length", "attention.head_count", "attention.head_count_kv"]
)
def test_a_list_has_one_entry_for_each_layer(small_file, key):
    value = small_file().metadata[f"llama.{key}"]
    load_decoder(small_file(keys={f"llama.{key}": [value]}))
    with pytest.raises(GGUFError, match=rf"llama\.{key} .* an array of 3"):
        load_decoder(small_file(keys={f"llama.{key}": [value] * 3}))


def test_linear_rope_scaling_divides_the_positions(small_file, logits):
    tokens = np.arange(20, dtype=np.int32)[None]
    decoder = load_decoder(small_file())
    scaled = load_decoder(
        small_file(keys={"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 0.5})
    )
    doubled, _ = decoder(tokens, positions_BT=2 * np.arange(20, dtype=np.int32)[None])
    np.testing.assert_allclose(logits(scaled, tokens), doubled, rtol=1e-4, atol=1e-5)


def by_hand(attention=None, epsilon=1e-5, **changes):
    sizes = dict(width=32, vocabulary=48, context_length=128) | changes
    attention = Attention(
        **dict(heads=4, kv_heads=2, head_width=8, rope=RopeConfig(8)) | (attention or {})
    )
    return DecoderConfig.uniform(
        sizes.pop("layers", 1), attention, Gated(64), norm_epsilon=epsilon, **sizes
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"attention": {"heads": 0}}, "heads must be at least 1, got 0"),
        ({"attention": {"kv_heads": 3}}, "4 heads and 3 KV heads"),
        ({"attention": {"rope": RopeConfig(16)}}, "rope rotates 16 elements of a head of 8"),
        ({"epsilon": float("nan")}, "norm_epsilon must be finite and not negative, got nan"),
        ({"epsilon": -1e-5}, "norm_epsilon must be finite and not negative, got -1e-05"),
    ],
)
def test_configurations_made_by_hand(change, message):
    by_hand()
    with pytest.raises(ValueError, match=message):
        by_hand(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"routing": Routing(5, "softmax", True)}, "5 experts are used, there are 4"),
        ({"hidden": 0}, "hidden must be at least 1, got 0"),
    ],
)
def test_mixtures_made_by_hand(change, message):
    sizes = dict(experts=4, routing=Routing(2, "softmax", True), hidden=64)
    Mixture(**sizes)
    with pytest.raises(ValueError, match=message):
        Mixture(**sizes | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qk_norm": "foo"}, "qk_norm must be .*, got 'foo'"),
        ({"gate": "foo"}, "gate must be query, width, head or None, got 'foo'"),
        ({"window": 0}, "window must be a positive integer or None, got 0"),
        ({"window": 2.5}, "window must be a positive integer or None, got 2.5"),
        ({"chunk": 0}, "chunk .* got 0"),
        ({"soft_cap": -1.0}, "soft_cap must be a positive number or None, got -1.0"),
        ({"scale": float("nan")}, "scale must be a finite number, got nan"),
    ],
)
def test_options_of_attention_made_by_hand(change, message):
    with pytest.raises(ValueError, match=message):
        by_hand(attention=change)


def test_no_head_in_any_layer(small_file):
    with pytest.raises(GGUFError, match="llama.attention.head_count is 0 in all 1 layers"):
        load_decoder(small_file(keys={"llama.attention.head_count": [0]}))
