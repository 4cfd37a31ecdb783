"""chat: a conversation over stdin and stdout."""

import io
import sys

import pytest

import rocmforge_jax as rf
from rocmforge_jax.gguf import open_gguf, write_gguf


@pytest.fixture
def says(monkeypatch):
    """What the user types."""

    def says(text, terminal=False, encoding="utf-8"):
        raw = io.BytesIO(text if isinstance(text, bytes) else text.encode())
        stdin = io.TextIOWrapper(raw, encoding=encoding)
        monkeypatch.setattr(stdin, "isatty", lambda: terminal, raising=False)
        monkeypatch.setattr(sys, "stdin", stdin)

    return says


class Scripted:
    """Stands in for a model: answers with these pieces in turn (an exception is raised), and keeps
    what it was asked.
    """

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def fit_messages(self, messages, **_):
        return messages

    def chat(self, messages, **_):
        self.asked.append([message["content"] for message in messages])
        for piece in self.answers.pop(0):
            if isinstance(piece, BaseException):
                raise piece
            yield piece


@pytest.fixture
def scripted(monkeypatch):
    def scripted(*answers):
        model = Scripted(*answers)
        monkeypatch.setattr("rocmforge_jax.load", lambda path, **_: model, raising=False)
        return model

    return scripted


def test_answers_are_those_of_the_library(run, loaded, says, with_chat_template):
    says("Who art thou?\n\nAnd I?\n")
    ran = run("chat", "--model", with_chat_template, "--max-tokens", 12, "--seed", 3)
    messages = [{"role": "user", "content": "Who art thou?"}]
    first = loaded.chat(messages, max_tokens=12, seed=3).text
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "And I?"}]
    assert ran == (0, f"{first}\n{loaded.chat(messages, max_tokens=12, seed=3).text}\n", "")


@pytest.mark.core
def test_the_conversation_is_kept(run, scripted, says, with_chat_template):
    model = scripted(["fine", " thanks"], ["bye"])
    says("hi\nbye\n")
    ran = run("chat", "--model", with_chat_template, "--system", "be kind")
    assert ran == (0, "fine thanks\nbye\n", "")
    assert model.asked == [["be kind", "hi"], ["be kind", "hi", "fine thanks", "bye"]]


@pytest.mark.core
def test_ctrl_c_stops_the_answer_and_not_the_program(run, scripted, says, with_chat_template):
    model = scripted(["well", KeyboardInterrupt(), "never"], ["yes"])
    says("one\ntwo\n")
    assert run("chat", "--model", with_chat_template) == (0, "well\nyes\n", "")
    assert model.asked == [["one"], ["one", "well", "two"]]


@pytest.mark.core
def test_a_terminal_is_prompted_on_stderr(run, scripted, says, with_chat_template):
    scripted(["yes"])
    says("one\n", terminal=True)
    assert run("chat", "--model", with_chat_template) == (0, "yes\n", "> > ")


@pytest.mark.core
def test_ctrl_c_at_the_prompt_forgets_the_line(
    run, scripted, says, monkeypatch, with_chat_template
):
    scripted(["yes"])
    says("")
    lines = [KeyboardInterrupt(), "one\n", ""]

    def readline():
        line = lines.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr(sys.stdin, "readline", readline)
    assert run("chat", "--model", with_chat_template) == (0, "yes\n", "\n")


@pytest.mark.core
def test_a_model_without_a_template_is_sent_to_generate(run):
    ran = run("chat", "--model", "demo")
    assert (
        (ran.code, ran.out) == (2, "") and "no chat template" in ran.err and "`generate`" in ran.err
    )


@pytest.mark.core
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_line_that_is_no_text_is_an_error_of_its_own(
    run, scripted, says, with_chat_template, encoding
):
    model = scripted(["yes"], ["no"])
    says("é one\n".encode() + "aé".encode() + b"\xff\xfe\ntwo\n", encoding=encoding)
    ran = run("chat", "--model", with_chat_template)
    assert (ran.code, ran.out) == (0, "yes\nno\n") and ran.err.count("\n") == 1
    assert "byte 3 is 0xff" in ran.err
    assert model.asked == [["é one"], ["é one", "yes", "two"]]


@pytest.fixture
def with_template(with_chat_template, tmp_path):
    """The model with another chat template: path."""

    def make(template):
        file = open_gguf(with_chat_template)
        path = tmp_path / "other.gguf"
        tensors = {tensor.name: (tensor.format, tensor.data) for tensor in file.tensors.values()}
        write_gguf(path, dict(file.metadata) | {"tokenizer.chat_template": template}, tensors)
        return path

    return make


@pytest.mark.core
@pytest.mark.parametrize(
    "template, error",
    [
        ("\n\n{% if %}", "line 3 of the template"),
        ("{{ raise_exception('no thanks') }}", "no thanks"),
        ("  \n", "has no chat template"),
    ],
)
def test_a_template_that_fails_is_one_line_with_a_remedy(run, with_template, template, error):
    """Before the model is loaded."""
    path = with_template(template)
    ran = run("chat", "--model", path)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert all(words in ran.err for words in (str(path), error, "--chat-template", "`generate`"))


@pytest.mark.core
def test_a_template_that_refuses_a_later_turn(run, scripted, says, with_chat_template):
    scripted(["one"], [rf.ChatTemplateError("roles must alternate")])
    says("hi\nhi\n")
    ran = run("chat", "--model", with_chat_template)
    assert (ran.code, ran.out) == (2, "one\n")
    assert "roles must alternate" in ran.err and "--chat-template" in ran.err


@pytest.mark.core
def test_a_template_of_a_file(run, scripted, says, tmp_path):
    model = scripted(["yes"])
    (tmp_path / "chat.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    says("hi\n")
    ran = run("chat", "--model", "demo", "--chat-template", tmp_path / "chat.jinja")
    assert ran == (0, "yes\n", "")
    assert model.chat_template.render([{"role": "user", "content": "hi"}]) == "<|endoftext|>hi"


@pytest.mark.core
@pytest.mark.parametrize("content, error", [(None, "No such file"), (b"\xff", "not UTF-8")])
def test_a_template_file_that_cannot_be_read(run, tmp_path, content, error):
    path = tmp_path / "chat.jinja"
    if content is not None:
        path.write_bytes(content)
    ran = run("chat", "--model", "demo", "--chat-template", path)
    assert (ran.code, ran.out) == (2, "") and str(path) in ran.err and error in ran.err


def test_a_line_that_alone_fills_the_context_is_an_error_of_its_own(
    run, loaded, says, with_chat_template
):
    says("Who art thou?\n" + "word " * 600 + "\nAnd I?\n")
    ran = run("chat", "--model", with_chat_template, "--max-tokens", 5)
    messages = [{"role": "user", "content": "Who art thou?"}]
    first = loaded.chat(messages, max_tokens=5).text
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "And I?"}]
    second = loaded.chat(messages, max_tokens=5).text
    assert (ran.code, ran.out) == (0, f"{first}\n{second}\n")
    assert ran.err.count("\n") == 1 and f"context is {loaded.engine.context_length}" in ran.err


def test_a_full_context_drops_the_oldest_turns(run, loaded, says, with_chat_template):
    """Once said for each time, and the system message stays."""
    length = loaded.engine.context_length
    line = "word " * (length // 4)
    says(f"{line}\n" * 5)
    ran = run("chat", "--model", with_chat_template, "--system", "Be kind.", "--max-tokens", 3)
    assert ran.code == 0
    messages, answers, drops = [{"role": "system", "content": "Be kind."}], [], 0
    for _ in range(5):
        messages.append({"role": "user", "content": line.strip()})
        before = len(messages)
        while len(loaded.tokenizer.encode(loaded.chat_template.render(messages))) + 3 > length:
            del messages[1:3]
        drops += len(messages) < before
        answers.append(loaded.chat(messages, max_tokens=3).text)
        messages.append({"role": "assistant", "content": answers[-1]})
    assert ran.out == "".join(f"{answer}\n" for answer in answers)
    assert drops > 1 and ran.err.count("dropped") == ran.err.count("\n") == drops


def test_the_context_length_is_given_to_the_model(run, loaded, with_chat_template, monkeypatch):
    given = []
    monkeypatch.setattr("rocmforge_jax.load", lambda _, **options: given.append(options) or loaded)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert run("chat", "--model", with_chat_template, "--context-length", 77).code == 0
    assert given == [{"context_length": 77}]
