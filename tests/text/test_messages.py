"""Messages as clients of OpenAI's interface send them, in the forms that templates read."""

import dataclasses

import numpy as np
import pytest

from rocmforge_jax.text import ChatTemplate, ChatTemplateError, without_oldest_turn

pytestmark = pytest.mark.core

JOINED = "{% for m in messages %}{{ m.role + ':' + m.content + ';' }}{% endfor %}"
CALLS = (
    "{% for m in messages if m.tool_calls %}{% for c in m.tool_calls %}CALL{% endfor %}{% endfor %}"
)
ARGUMENTS = '{"city":"Zürich", "days":[1]}'


def render(template, messages, **options):
    return ChatTemplate(template).render(messages, **options)


def called(arguments, **function):
    call = {
        "id": "1",
        "type": "function",
        "function": {"name": "f", "arguments": arguments} | function,
    }
    return [{"role": "assistant", "content": None, "tool_calls": [call]}]


@pytest.mark.parametrize(
    "use, text",
    [
        ("{% for k, v in A | items %}{{ k }}={{ v }},{% endfor %}", "city=Zürich,days=[1],"),
        ("{% for k, v in A.items() %}{{ k }},{% endfor %}", "city,days,"),
        ("{{ A.city }}{{ A['days'][0] }}", "Zürich1"),
        ("{{ A is mapping }}{{ A is string }}{{ A | length }}", "TrueFalse2"),
        ("{{ A | tojson }}", '{"city": "Zürich", "days": [1]}'),
        ("{{ A if A is string else A | tojson }}", '{"city": "Zürich", "days": [1]}'),
        # Those that want a text get the one that was sent.
        ("{{ A }}", ARGUMENTS),
        ("{{ '<' + A + '>' }}{{ A + '.' }}", f"<{ARGUMENTS}>{ARGUMENTS}."),
        ("{{ '<' ~ A ~ '>' }}", f"<{ARGUMENTS}>"),
        ("{{ A | string | trim }}", ARGUMENTS),
    ],
)
def test_arguments_are_an_object_and_a_text(use, text):
    template = CALLS.replace("CALL", use.replace("A", "c.function.arguments"))
    assert render(template, called(ARGUMENTS)) == text
    if text != ARGUMENTS and "<" not in text:
        assert render(template, called({"city": "Zürich", "days": [1]})) == text


def test_arguments_that_are_an_object_print_as_json():
    template = CALLS.replace("CALL", "{{ c.function.arguments }}")
    assert render(template, called({"a": "é", "b": np.float32(0.5)})) == '{"a": "é", "b": 0.5}'


@pytest.mark.parametrize("nothing", ["", "{}", None, {}])
def test_no_arguments(nothing):
    template = CALLS.replace("CALL", "{{ c.function.arguments | tojson }}")
    assert render(template, called(nothing)) == "{}"


@pytest.mark.parametrize("wrong", ["{", "[1]", "3", '"x"', "null", [1], 3])
def test_arguments_that_are_no_object(wrong):
    messages = [{"role": "user", "content": "hi"}, *called(wrong)]
    with pytest.raises(ChatTemplateError, match="tool call 0 in message 1 .*JSON object"):
        render(CALLS, messages)


def test_calls_without_the_function_around_them():
    messages = [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"a": 1}'}]}]
    assert render(CALLS.replace("CALL", "{{ c.name }}{{ c.arguments.a }}"), messages) == "f1"


@pytest.mark.parametrize("calls", ["f", ["f"], {"f": 1}, 3])
def test_calls_that_are_none(calls):
    with pytest.raises(ChatTemplateError, match="tool_calls of message 0"):
        render(CALLS, [{"role": "assistant", "content": "", "tool_calls": calls}])


@pytest.mark.parametrize("message", [{"content": None}, {}])
def test_no_content_is_an_empty_text(message):
    message = {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]} | message
    assert render(JOINED, [message]) == "assistant:;"
    assert render("{{ messages[0].content == '' }}", [message]) == "True"


def test_no_content_is_none_for_a_template_that_asks():
    """DeepSeek's templates write the calls of a message only then."""
    template = (
        "{% if messages[0]['content'] is none %}call{% else %}{{ messages[0].content }}{% endif %}"
    )
    assert render(template, called({})) == "call"
    assert render(template + "{{ messages[0].content | length }}", called({})) == "0"  # cannot


def test_fields_that_are_none_are_not_there():
    message = {"role": "user", "content": "hi", "tool_calls": None, "name": None, "refusal": None}
    assert render("{{ messages[0].keys() | list }}", [message]) == "['role', 'content']"


PARTS = [{"type": "text", "text": "Hey"}, {"type": "text", "text": "you "}]


@pytest.mark.parametrize(
    "template, text",
    [
        (JOINED, "user:Hey\nyou ;"),
        ("{{ messages[0].content }}", "Hey\nyou "),
        ("{{ messages[0].content | trim }}", "Hey\nyou"),
        ("{{ messages[0].content.strip() }}", "Hey\nyou"),
        ("{{ messages[0].content | tojson }}", '"Hey\\nyou "'),
        ("{{ 'you' in messages[0].content }}", "True"),
        ("{{ messages[0].content + '.' }}", "Hey\nyou ."),
        ("{% if messages[0].content is string %}{{ messages[0].content }}{% endif %}", "Hey\nyou "),
        ("{% for p in messages[0].content %}[{{ p.text }}]{% endfor %}", "[Hey][you ]"),
        ("{{ messages[0].content[0].text }}", "Hey"),
        ("{{ messages[0].content | map(attribute='text') | join('+') }}", "Hey+you "),
        (
            "{% set c = messages[0].content %}{% if c is string %}{{ c }}{% else %}"
            "{% for p in c if p.type == 'text' %}<{{ p.text }}>{% endfor %}{% endif %}",
            "<Hey><you >",
        ),
        (
            "{% set c = messages[0].content %}"
            "{% if c is iterable and c is not string %}list{% endif %}{{ c }}",
            "Hey\nyou ",
        ),
    ],
)
def test_parts_are_a_list_or_a_text(template, text):
    assert render(template, [{"role": "user", "content": PARTS}]) == text


def test_a_text_is_one_part_for_templates_that_only_read_lists():
    template = (
        "{% for m in messages %}{% for p in m.content %}{{ p.text }};{% endfor %}{% endfor %}"
    )
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": PARTS}]
    assert render(template, messages) == "a;Hey;you ;"


def test_a_template_may_loop_over_letters():
    assert (
        render(
            "{% for c in messages[0].content %}{{ c }}.{% endfor %}{{ messages[0].content }}",
            [{"role": "user", "content": "ab"}],
        )
        == "a.b.ab"
    )


@pytest.mark.parametrize(
    "part, what",
    [
        ({"type": "image_url", "image_url": {"url": "x"}}, "'image_url'"),
        ({"type": "input_audio", "text": "x"}, "'input_audio'"),
        ({"type": "text", "text": None}, "'text'"),
        ({"type": "text"}, "'text'"),
        (3, "int"),
    ],
)
def test_parts_that_are_not_text(part, what):
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": [PARTS[0], part]}]
    with pytest.raises(ChatTemplateError, match=f"message 1 has a part .*{what}"):
        render(JOINED, messages)


def test_results_of_tools():
    messages = [{"role": "tool", "tool_call_id": "c1", "name": "f", "content": PARTS[:1]}]
    template = (
        "{% for m in messages %}{{ m.tool_call_id }} {{ m.name }} {{ m.content }}{% endfor %}"
    )
    assert render(template, messages) == "c1 f Hey"


def test_a_developer_is_the_system_where_a_template_knows_none():
    messages = [{"role": "developer", "content": "a"}]
    assert render(JOINED, messages) == "system:a;"
    assert render(JOINED + "{# developer #}", messages) == "developer:a;"
    assert messages == [{"role": "developer", "content": "a"}]


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_what_the_model_thought_has_its_names(name):
    messages = [{"role": "assistant", "content": "", name: "hm"}]
    assert (
        render("{{ messages[0].reasoning_content }}{{ messages[0].thinking }}", messages) == "hmhm"
    )


@dataclasses.dataclass
class Model:
    """Stands in for an object of a client's library."""

    fields: dict

    def model_dump(self):
        return self.fields


def test_objects_with_model_dump():
    function = Model({"name": "f", "arguments": ARGUMENTS})
    answer = Model(
        {"role": "assistant", "content": None, "tool_calls": [Model({"function": function})]}
    )
    template = CALLS.replace("CALL", "{{ c.function.arguments.city }}{{ tools[0].name }}{{ n }}")
    options = {"tools": [Model({"name": "g"})], "n": np.int64(3)}
    assert render(template, (answer,), **options) == "Zürichg3"


ANSWER = {"role": "assistant", "content": "Sure, 1, "}
CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_the_last_message_is_continued():
    messages = [{"role": "user", "content": "Count."}, ANSWER]
    text = "<|user|>Count.<|end|><|assistant|>Sure, 1, "
    assert render(CHATML, messages, continue_final_message=True) == text
    assert render(CHATML, messages) == text + "<|end|><|assistant|>"
    trimmed = CHATML.replace("m.content", "m.content | trim")
    assert render(trimmed, messages, continue_final_message=True) == text.rstrip()
    twice = CHATML.replace("m.content", "m.content | trim }}/{{ m.content }}/{{ m.content")
    text = "<|user|>Count./Count./Count.<|end|><|assistant|>Sure, 1,/Sure, 1, /Sure, 1, "
    assert render(twice, messages, continue_final_message=True) == text
    assert messages[1] == {"role": "assistant", "content": "Sure, 1, "}


def test_the_last_part_is_continued():
    messages = [{"role": "assistant", "content": PARTS}]
    template = "{% for p in messages[0].content %}{{ p.text }};{% endfor %}"
    assert render(template, messages, continue_final_message=True) == "Hey;you "
    assert render(CHATML, messages, continue_final_message=True) == "<|assistant|>Hey\nyou "


@pytest.mark.parametrize("name", ["reasoning_content", "thinking"])
def test_a_thought_is_continued(name):
    messages = [{"role": "assistant", "content": "", name: "Well"}]
    template = "<think>{{ messages[0].reasoning_content }}</think>{{ messages[0].content }}"
    assert render(template, messages, continue_final_message=name) == "<think>Well"


@pytest.mark.parametrize(
    "template, messages, field, error",
    [
        (CHATML, [], True, "empty"),
        (CHATML, [{"role": "assistant", "tool_calls": [{"name": "f"}]}], True, "no 'content'"),
        (CHATML, [ANSWER], "reasoning_content", "no 'reasoning_content'"),
        (CHATML, [ANSWER | {"reasoning_content": "a"}], "reasoning_content", "uses no"),
        (CHATML, [ANSWER | {"content": []}], True, "no text"),
        (CHATML, [ANSWER | {"name": 3}], "name", "uses no 'name'"),
        (CHATML + "{{ messages[0].name }}", [ANSWER | {"name": 3}], "name", "'name' .*int"),
        ("{{ messages[0].content[:3] }}", [ANSWER], True, "Sure, 1,"),
        ("{# content #}", [ANSWER], True, "Sure, 1,"),
    ],
)
def test_what_cannot_be_continued(template, messages, field, error):
    with pytest.raises(ChatTemplateError, match=f"continue_final_message: .*{error}"):
        render(template, messages, continue_final_message=field)


def test_a_message_is_continued_or_a_new_one_begun():
    with pytest.raises(ChatTemplateError, match="continue_final_message and add_generation_prompt"):
        render(CHATML, [ANSWER], add_generation_prompt=True, continue_final_message=True)


def test_the_oldest_turn_is_dropped():
    roles = ["system", "user", "assistant", "tool", "user", "assistant", "user"]
    messages = [{"role": role, "content": str(i)} for i, role in enumerate(roles)]
    shorter = without_oldest_turn(messages)
    assert [message["content"] for message in shorter] == ["0", "4", "5", "6"]
    shortest = without_oldest_turn(shorter)
    assert [message["content"] for message in shortest] == ["0", "6"]
    assert without_oldest_turn(shortest) == shortest
