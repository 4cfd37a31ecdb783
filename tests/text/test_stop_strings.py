"""The text before the first stop string, and nothing that may yet become one."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from rocmforge_jax.text import StopStrings

ALPHABET = st.text(alphabet="ab<", max_size=20)
STOPS = st.lists(st.text(alphabet="ab<", min_size=1, max_size=4), max_size=4)


def stopped(stops, chunks):
    """(the text let through, the stop string hit)."""
    filter = StopStrings(stops)
    pieces = [filter.push(chunk) for chunk in chunks] + [filter.flush()]
    return "".join(pieces), filter.hit


def by_definition(stops, text):
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end - len(stop)], stop
    return text, None


@settings(deadline=None)
@given(stops=STOPS, chunks=st.lists(ALPHABET, max_size=8))
def test_the_cut_does_not_matter(stops, chunks):
    assert stopped(stops, chunks) == by_definition(stops, "".join(chunks))


@settings(deadline=None)
@given(stops=STOPS, chunks=st.lists(ALPHABET, max_size=8))
def test_only_what_could_become_a_stop_string_is_held(stops, chunks):
    filter, text, shown = StopStrings(stops), "", ""
    for chunk in chunks:
        text, shown = text + chunk, shown + filter.push(chunk)
        if filter.hit is not None:
            return
        held = text[len(shown) :]
        assert text == shown + held
        assert not held or any(stop.startswith(held) for stop in stops)


@pytest.mark.core
@pytest.mark.parametrize(
    "stops, chunks, expected",
    [
        (["</s>"], ["Hello", " wor", "ld</", "s>", " more"], ("Hello world", "</s>")),
        (["</s>"], ["a</", "b"], ("a</b", None)),
        (["</s>"], ["a</"], ("a</", None)),
        (["\n\n", "User:"], ["one\nUs", "er: two\n\n"], ("one\n", "User:")),
        (["abc", "bc"], ["xabc"], ("x", "abc")),
        (["abcd", "bc"], ["xabcd"], ("xa", "bc")),
        (["aab"], ["aa", "aab"], ("aa", "aab")),
        ("stop", ["do not stop here"], ("do not ", "stop")),
        (["é"], ["caf", "é!"], ("caf", "é")),
        ([], ["all ", "of it"], ("all of it", None)),
    ],
)
def test_examples(stops, chunks, expected):
    assert stopped(stops, chunks) == expected


@pytest.mark.core
def test_text_comes_as_soon_as_it_is_certain():
    filter = StopStrings(["</s>"])
    assert [filter.push(text) for text in ("a", "<", "/", "x", "</s>", "y")] == [
        "a",
        "",
        "",
        "</x",
        "",
        "",
    ]
    assert filter.hit == "</s>"
    assert filter.flush() == ""


@pytest.mark.core
@pytest.mark.parametrize("stops", ["", [""], ["a", ""]])
def test_empty_stop_strings_are_refused(stops):
    with pytest.raises(ValueError, match="stop strings have at least one character, got ''"):
        StopStrings(stops)


@pytest.mark.core
@pytest.mark.parametrize("stops", [5, b"a", {"a": 1}, [None], [b"a"], [1]])
def test_what_is_no_stop_string_is_refused(stops):
    with pytest.raises(TypeError, match="stop must be a string or a list of strings, got"):
        StopStrings(stops)
