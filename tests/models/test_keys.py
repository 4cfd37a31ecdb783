"""How keys are read that differ between layers."""

import numpy as np
import pytest

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.models.keys import KeyReader

pytestmark = pytest.mark.core


@pytest.fixture
def keys(small_file):
    """keys(layers=6, **changes): a KeyReader of a file with these keys of `llama`."""

    def keys(layers=6, **changes):
        named = {key.replace("__", "."): value for key, value in changes.items()}
        given = {f"llama.{key}": value for key, value in named.items()}
        return KeyReader(small_file(keys={"llama.block_count": layers} | given))

    return keys


WINDOW, PATTERN = "attention__sliding_window", "attention__sliding_window_pattern"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({WINDOW: 8}, [8, 8, None, 8, 8, None]),
        ({WINDOW: 8, PATTERN: 2}, [8, None, 8, None, 8, None]),
        ({WINDOW: 8, PATTERN: 1}, [None] * 6),
        ({WINDOW: 8, PATTERN: 0}, [8] * 6),
        (
            {WINDOW: 8, PATTERN: [True, False, False, True, True, False]},
            [8, None, None, 8, 8, None],
        ),
        ({WINDOW: 8, PATTERN: np.array([0, 1, 1, 0, 0, 1], np.int32)}, [None, 8, 8, None, None, 8]),
        ({WINDOW: 0}, [None] * 6),
        ({}, [None] * 6),
    ],
)
def test_windows(keys, given, found):
    assert list(keys(**given).windows(3, optional=True)) == found


def test_a_default_window_and_full_attention_first(keys):
    assert list(keys().windows(2, 16)) == [16, None] * 3
    assert list(keys(**{WINDOW: 4}).windows(3, full_first=True)) == [None, 4, 4] * 2


@pytest.mark.parametrize(("given", "found"), [({}, "no such key"), ({WINDOW: 0}, "has 0")])
def test_a_window_that_a_file_must_have(keys, given, found):
    with pytest.raises(GGUFError, match=f"llama.attention.sliding_window must be .* {found}"):
        keys(**given).windows(2)


@pytest.mark.parametrize("pattern", [-1, "x", 2.5, [True] * 5, [1.0, float("nan")] * 3])
def test_patterns_that_are_none(keys, pattern):
    with pytest.raises(GGUFError, match=r"llama.attention.sliding_window_pattern must (be|hold)"):
        keys(**{WINDOW: 8, PATTERN: pattern}).windows(3)


def test_integers_of_layers(keys):
    reader = keys(attention__head_count=[1, 2, 3, 4, 5, 0], nextn_predict_layers=1)
    assert reader.layers == 5
    assert reader.integers("attention.head_count") == (1, 2, 3, 4, 5)
    assert reader.integers("embedding_length") == (32,) * 5
    with pytest.raises(GGUFError, match="head_count must be an integer from 0 to 4.* has 5"):
        reader.integers("attention.head_count", high=4)


@pytest.mark.parametrize("value", [-0.5, float("inf"), float("nan"), "1", True])
def test_numbers_that_may_be_0(keys, value):
    assert keys(factor=0.0).optional_real("factor") is None
    assert keys().optional_real("factor", 2.0) == 2.0
    with pytest.raises(GGUFError, match="llama.factor must be a finite number from 0.0"):
        keys(factor=value).optional_real("factor")


def test_an_array_of_another_length_is_refused_with_both_numbers(keys):
    reader = keys(attention__head_count=[1, 2, 3])
    message = "small.gguf: llama.attention.head_count .* each of the 6 blocks.* an array of 3"
    with pytest.raises(GGUFError, match=message):
        reader.integers("attention.head_count")
