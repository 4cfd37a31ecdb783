"""Messages of the library, in the words of the command line."""

import pytest

from rocmforge_jax.cli.flags import in_flags

pytestmark = pytest.mark.core


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("give pooling= one of mean, cls", "give --pooling one of mean, cls"),
        ("shorten it, or give truncate=True to", "shorten it, or give --truncate to"),
        ("window=7 or less", "--window 7 or less"),
        ("top_p must be above 0, got 2", "--top-p must be above 0, got 2"),
        ("seed must be an integer", "--seed must be an integer"),
        ("raise context_length", "raise --context-length"),
        ("penalty_last_n must be from 0 to 256", "--penalty-last-n must be from 0 to 256"),
    ],
)
def test_arguments_become_options(message, expected):
    assert in_flags(message) == expected


@pytest.mark.parametrize(
    "message",
    [
        "llama.context_length is 0",
        "no file models/top_p or top_p.gguf",
        "the model has no seed, no window and no pooling",
        "got 'top_p'",
        "--top-p must be above 0",
    ],
)
def test_other_words_stay(message):
    assert in_flags(message) == message
