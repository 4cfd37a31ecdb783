"""Chat templates: what they are given, what they give, and what is said when they cannot."""

import datetime
import re
import threading

import pytest

from rocmforge_jax.gguf import GGUFError, open_gguf
from rocmforge_jax.text import (
    ChatTemplate,
    ChatTemplateError,
    chat_template_from_metadata,
    tokenizer_from_metadata,
)

pytestmark = pytest.mark.core

HI = [{"role": "user", "content": "hi"}]

CHATML = """{% for message in messages %}
    {%- if loop.first and message.role != 'system' %}<|im_start|>system
Be kind.<|im_end|>
{% endif %}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}"""


def render(template, messages=HI, **variables):
    return ChatTemplate(template, bos_token="<s>", eos_token="</s>").render(messages, **variables)


def test_a_conversation():
    messages = [*HI, {"role": "assistant", "content": "yes?"}]
    text = (
        "<|im_start|>system\nBe"
        " kind.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes?<|im_end|>\n"
    )
    assert render(CHATML, messages, add_generation_prompt=False) == text
    assert render(CHATML, messages) == text + "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    "template, text",
    [
        ("{{ bos_token }}|{{ eos_token }}", "<s>|</s>"),
        ("{{ messages[0].content }}", "hi"),
        ("{{ messages | length }}{{ tools is none }}", "1True"),
        ("a\n  {% if true %}\nb\n  {% endif %}\nc", "a\nb\nc"),  # blocks leave no line behind
        ("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
        (
            "{% for i in range(4) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}",
            "023",
        ),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "hi"),
        ("{{ {'é': '<日>'} | tojson }}", '{"é": "<日>"}'),
        ("{{ {'b': 1, 'a': [2]} | tojson(indent=1) }}", '{\n "b": 1,\n "a": [\n  2\n ]\n}'),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}", '{"a":2,"b":1}'),
        (
            (
                "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{%"
                " endfor %}{{ ns.n }}"
            ),
            "1",
        ),
        ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(1) }}{{ f(x=2) }}", "[1][2]"),
        ("{{ 'a-b'.split('-')[1].strip() ~ 'c' | upper }}", "bC"),
        (
            "{{ {'é': '\x7f<🦙>'} | tojson(ensure_ascii=true) }}",
            r'{"\u00e9": "\u007f<\ud83e\udd99>"}',
        ),
        ("{{ messages | map(attribute='role') | tojson }}", '["user"]'),  # a generator
        ("{{ {'a': 1}.values() | tojson }}{{ {'a': 1}.items() | tojson }}", '[1][["a", 1]]'),
        ("{% set x = [1] %}{% set _ = x.append(2) %}{{ x.pop(0) }}{{ x }}", "1[2]"),
    ],
)
def test_what_templates_use(template, text):
    assert render(template) == text


def test_the_date():
    assert render("{{ strftime_now('%Y') }}") in {
        str(datetime.date.today().year + shift) for shift in (-1, 0, 1)
    }


def test_tools_and_further_variables_are_passed():
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    assert (
        render(
            "{{ tools[0].function.name }}{{ enable_thinking }}", tools=tools, enable_thinking=False
        )
        == "fFalse"
    )


NAMES = ["tokenizer", "self", "variables", "continue_final_message", "parse_special_in_messages"]


@pytest.mark.parametrize("name", [*NAMES, "template", "mark", "text", "enable_thinking"])
def test_a_variable_may_have_any_name(name, byte_level):
    """Jinja has its own meaning of `self`, but takes the variable."""
    tokenizer = tokenizer_from_metadata(byte_level([]))
    template = ChatTemplate("seven" if name == "self" else f"{{{{ {name} }}}}")
    given = {name: "seven"}
    assert template.render(HI, variables=given) == "seven"
    assert tokenizer.decode(template.encode(HI, tokenizer, variables=given)) == "seven"
    assert given == {name: "seven"}


@pytest.mark.parametrize(
    ("variables", "error"),
    [
        (5, "variables .* got int 5"),
        (["tools"], "variables .* got list"),
        ({3: 1}, "variables .* got 3"),
        ({"messages": []}, "'messages'"),
    ],
)
def test_what_are_no_variables(variables, error):
    with pytest.raises(TypeError, match=error):
        render("", variables=variables)


@pytest.mark.parametrize(
    ("name", "value"),
    [("add_generation_prompt", value) for value in ("", "no", 0, 1, [True])]
    + [("continue_final_message", value) for value in (0, 1, None)],
)
def test_flags_are_bools(name, value):
    with pytest.raises(TypeError, match=f"{name} .* got {re.escape(repr(value))}"):
        render("", **{name: value})


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (5, "int 5"),
        (b"x", "bytes b'x'"),
        ([5], r"list \[5\]"),
        ([{"name": "a"}], r"list .*'a'"),
        ({"a": 5}, "'a' .* int"),
        ({5: "a"}, "5 .* str"),
        ([{"name": "a", "template": b"x"}], "'a' .* bytes"),
    ],
)
def test_what_is_no_template(text, error):
    with pytest.raises(TypeError, match=error):
        ChatTemplate(text)


def test_content_may_be_parts_and_is_not_needed_beside_tool_calls():
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "look"}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]},
        {"role": "assistant", "content": None},
    ]
    assert (
        render(
            "{{ messages[0].content[0].text }} {{ messages[1].tool_calls[0].function.name }}",
            messages,
        )
        == "look f"
    )


@pytest.mark.parametrize(
    "content", ["日本語 🦙", "\ue000", "{{ 7 * 7 }}", "{% raw %}", "\x00\r\n\u2028", "<|im_end|>"]
)
def test_content_is_never_changed_nor_run(content):
    assert render("{{ messages[0].content }}", [{"role": "user", "content": content}]) == content


def test_long_conversations():
    content = "abc 日本 " * 100_000
    assert (
        render(
            "{% for m in messages %}{{ m.content }}{% endfor %}",
            [{"role": "user", "content": content}] * 2,
        )
        == content * 2
    )


def test_the_messages_stay_as_they_were():
    messages = [{"role": "user", "content": ["a"]}]
    render("{% set _ = messages[0].content %}{{ messages }}", messages)
    assert messages == [{"role": "user", "content": ["a"]}]


@pytest.mark.parametrize(
    "messages, error",
    [
        ("hi", "messages are a list .*, got str"),
        ({"role": "user", "content": "hi"}, "messages are a list .*, got dict"),
        (None, "messages are a list .*, got NoneType"),
        (["hi"], "message 0 is str, expected a dict with 'role' and 'content'"),
        ([*HI, {"content": "hi"}], r"message 1 has no 'role' \(a string\), only \['content'\]"),
        ([{"role": 1, "content": "hi"}], "message 0 has no 'role'"),
        (
            [*HI, *HI, {"role": "user", "text": "hi"}],
            r"message 2 has no 'content', only \['role', 'text'\]",
        ),
        (
            [{"role": "user", "content": 5}],
            "the content of message 0 is int, expected a string or a list",
        ),
        (
            [{"role": "user", "content": "hi", "name": {1, 2}}],
            "are JSON data: Object of type set is not JSON serializable",
        ),
    ],
)
def test_what_are_no_messages(messages, error):
    with pytest.raises(ChatTemplateError, match=error):
        render("{{ messages }}", messages)


@pytest.mark.parametrize(
    "template, error",
    [
        ("{% if %}", "line 1 of the template: Expected an expression"),
        ("\n\n{{ 1 +* 2 }}", "line 3 of the template: unexpected"),
        ("{% for x in y %}", "line 1 of the template: Unexpected end of template"),
        ("{{ 'x' | nofilter }}", "line 1 of the template: No filter named 'nofilter'"),
        ("{{ message.content }}", "the template uses what is not there: 'message' is undefined"),
        ("{{ messages[7].content }}", "the template uses what is not there"),
        ("{{ 1 / 0 }}", "the template fails with ZeroDivisionError: division by zero"),
        ("{{ 'a' + 1 }}", "the template fails with TypeError"),
        (
            "{{ raise_exception('roles must alternate') }}",
            "the template refuses these messages: roles must alternate",
        ),
        ("{% include 'x' %}", "the template fails with TypeError: no loader"),
    ],
)
def test_a_template_that_fails_says_why(template, error):
    with pytest.raises(ChatTemplateError, match=error):
        render(template)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"tokenizer.chat_template": ""},
        {"tokenizer.chat_template": " \n"},
        {"tokenizer.chat_template.tool_use": "\t"},
    ],
)
def test_a_file_without_a_template_says_so_when_it_is_used(byte_level, keys):
    """A blank one is none."""
    template = chat_template_from_metadata(byte_level() | keys)
    assert template.text is None
    with pytest.raises(
        ChatTemplateError,
        match=r"the file has no chat template .*make one with ChatTemplate\(text\)",
    ):
        template.render(HI)


def test_the_template_of_a_file_knows_its_tokens(byte_level, sentence_piece):
    text = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"
    metadata = sentence_piece({"a": 0.0}) | {"tokenizer.chat_template": text}
    assert chat_template_from_metadata(metadata).render(HI) == "<s>hi</s>"
    metadata = byte_level(special={"[B]": 3, "[E]": 3}, bos_token_id=256, eos_token_id=257) | {
        "tokenizer.chat_template": text
    }
    assert chat_template_from_metadata(metadata).render(HI) == "[B]hi[E]"
    assert (
        chat_template_from_metadata(byte_level() | {"tokenizer.chat_template": text}).render(HI)
        == "hi"
    )
    metadata = byte_level(bos_token_id=256, eos_token_id=-1) | {"tokenizer.chat_template": text}
    assert chat_template_from_metadata(metadata).render(HI) == "hi"


@pytest.mark.parametrize(
    "keys",
    [
        {"bos_token_id": "x"},
        {"tokens": 5},
        {"model": [1]},
    ],
)
def test_special_tokens_that_there_are_not(byte_level, keys):
    metadata = (
        byte_level()
        | {"tokenizer.chat_template": "x"}
        | {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    )
    with pytest.raises(GGUFError, match=f"tokenizer.ggml.{next(iter(keys))} is"):
        chat_template_from_metadata(metadata)


def test_a_template_may_stand_alone():
    assert (
        chat_template_from_metadata({"tokenizer.chat_template": "{{ bos_token }}x"}).render(HI)
        == "x"
    )


VARIANTS = {"default": "plain", "tool_use": "tools", "rag": "documents"}
TOOLS = [{"type": "function", "function": {"name": "f"}}]


@pytest.mark.parametrize(
    "template",
    [
        ChatTemplate(VARIANTS),
        ChatTemplate([{"name": name, "template": text} for name, text in VARIANTS.items()]),
        chat_template_from_metadata(
            {f"tokenizer.chat_template.{name}": text for name, text in VARIANTS.items()}
            | {"tokenizer.chat_template": "plain", "tokenizer.chat_template.default": "older"}
        ),
        chat_template_from_metadata(
            {f"tokenizer.chat_template.{name}": text for name, text in VARIANTS.items()}
        ),
    ],
)
def test_tools_choose_a_template(template):
    """As transformers does."""
    assert template.render(HI) == template.render(HI, tools=[]) == "plain"
    assert template.render(HI, tools=TOOLS) == "tools"


def test_tools_without_a_template_for_them():
    assert ChatTemplate({"default": "plain", "tool_use": " "}).render(HI, tools=TOOLS) == "plain"


def test_templates_without_a_default():
    template = chat_template_from_metadata({"tokenizer.chat_template.tool_use": "tools"})
    assert template.render(HI, tools=TOOLS) == "tools"
    with pytest.raises(ChatTemplateError, match=r"\['tool_use'\]"):
        template.render(HI)


def test_a_variant_by_its_name(byte_level):
    metadata = byte_level() | {
        "tokenizer.chat_template": "plain",
        "tokenizer.chat_template.tool_use": "tools",
    }
    assert chat_template_from_metadata(metadata, "tool_use").render(HI) == "tools"
    with pytest.raises(
        ChatTemplateError, match=r"no chat template named 'rag', its variants are \['tool_use'\]"
    ):
        chat_template_from_metadata(metadata, "rag")


def test_a_template_that_is_no_string(byte_level):
    with pytest.raises(ValueError, match="tokenizer.chat_template is 5: expected a string"):
        chat_template_from_metadata(byte_level() | {"tokenizer.chat_template": 5})


def test_the_template_of_qwen2(reference):
    template = chat_template_from_metadata(
        open_gguf(reference / "tokenizers" / "ggml-vocab-qwen2.gguf").metadata
    )
    assert (
        template.render(HI) == "<|im_start|>system\nYou are a helpful"
        " assistant<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_threads_may_render():
    texts = {}

    def work(place):
        texts[place] = [
            render("{{ messages[0].content }}", [{"role": "user", "content": f"{place} {i}"}])
            for i in range(20)
        ]

    threads = [threading.Thread(target=work, args=(place,)) for place in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {place: [f"{place} {i}" for i in range(20)] for place in range(6)}
