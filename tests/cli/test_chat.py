"""chat: a conversation over stdin and stdout."""

import io
import sys

import pytest


@pytest.fixture
def says(monkeypatch):
    """What the user types."""

    def says(text, terminal=False):
        stdin = io.TextIOWrapper(io.BytesIO(text if isinstance(text, bytes) else text.encode()))
        monkeypatch.setattr(stdin, "isatty", lambda: terminal, raising=False)
        monkeypatch.setattr(sys, "stdin", stdin)

    return says


class Scripted:
    """Stands in for a model: answers with these pieces in turn (an exception is raised), and keeps
    what it was asked.
    """

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

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
        monkeypatch.setattr("rocmforge_jax.load", lambda path: model, raising=False)
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
def test_stdin_that_is_no_text_is_refused(run, scripted, says, with_chat_template):
    scripted()
    says(b"\xff\n")
    ran = run("chat", "--model", with_chat_template)
    assert (ran.code, ran.out) == (2, "") and "can't decode byte 0xff" in ran.err


def test_a_conversation_that_fills_the_context_is_refused_with_both_numbers(
    run, loaded, says, with_chat_template
):
    says("word " * 600 + "\n")
    ran = run("chat", "--model", with_chat_template)
    assert (ran.code, ran.out) == (
        2,
        "",
    ) and f"the context is {loaded.engine.context_length}" in ran.err
