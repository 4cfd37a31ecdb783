"""Templates of models render what transformers renders: tools/make_chat_data.py made the texts."""

import datetime
import re

import pytest

from rocmforge_jax.text import ChatTemplateError
from tests.text.chat_data import DATA, template_of

pytestmark = pytest.mark.core

CASES = [(name, case) for name in DATA["templates"] for case in DATA["sent"]]


def with_dates(text):
    """Fills in the dates, which are stored as their formats."""
    now = datetime.datetime.now()
    return re.sub("<<(%.*?)>>", lambda found: now.strftime(found[1]), text)


@pytest.mark.parametrize("name, case", CASES, ids=str)
def test_texts_are_those_of_transformers(name, case):
    """Also errors: of a template that refuses, and of one that cannot."""
    expected = DATA["templates"][name]["rendered"][case]
    options = DATA["sent"][case] | DATA["templates"][name]["variables"]
    if "text" in expected:
        assert template_of(name).render(**options) == with_dates(expected["text"])
    else:
        with pytest.raises(ChatTemplateError) as error:
            template_of(name).render(**options)
        if "continue_final_message" not in expected["error"]:
            assert expected["error"] in str(error.value)


@pytest.mark.parametrize("name", DATA["templates"])
def test_a_list_of_one_part_renders_as_its_text(name):
    options = DATA["sent"]["turns"] | DATA["templates"][name]["variables"]
    parts = [
        message | {"content": [{"type": "text", "text": message["content"]}]}
        for message in options["messages"]
    ]
    expected = DATA["templates"][name]["rendered"]["turns"]
    if "text" in expected:
        text = template_of(name).render(**options | {"messages": parts})
        assert text == with_dates(expected["text"])
