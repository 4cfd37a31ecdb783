"""generate: the library's text, as it comes."""

import dataclasses
import io
import json
import signal
import subprocess
import sys
import types

import pytest

from rocmforge_jax.cli import main


class Slow:
    """Stands in for a model: what it yields must have been printed before it is asked for more."""

    def __init__(self, pieces, capsys):
        self.pieces, self.capsys = pieces, capsys

    def generate(self, prompt, **_):
        yield self.pieces[0]
        for printed, piece in zip(self.pieces, self.pieces[1:]):
            assert self.capsys.readouterr().out == printed
            yield piece


@pytest.mark.core
def test_pieces_are_printed_as_they_come(run, monkeypatch, capsys):
    monkeypatch.setattr(
        "rocmforge_jax.load",
        lambda path, **_: Slow(["once ", "upon ", "a time"], capsys),
        raising=False,
    )
    assert run("generate", "--prompt", "a").out == "a time\n"


class Terminal(io.StringIO):
    """Stands in for stdout on a terminal."""

    def isatty(self):
        return True


@pytest.mark.core
@pytest.mark.parametrize(
    ("terminal", "words", "environment", "expected"),
    [
        (False, [], {}, "\nO!\n"),
        (False, ["--echo"], {}, "ROMEO:\nO!\n"),
        (True, [], {}, "\033[2mROMEO:\033[0m\nO!\n"),
        (True, ["--echo"], {"NO_COLOR": "1"}, "ROMEO:\nO!\n"),
        (True, [], {"TERM": "dumb"}, "ROMEO:\nO!\n"),
        (True, ["--no-echo"], {}, "\nO!\n"),
    ],
)
def test_a_terminal_shows_where_the_text_begins(
    monkeypatch, terminal, words, environment, expected
):
    """The prompt comes first, dimmed; data for other programs is the continuation alone."""
    for name, value in ({"TERM": "xterm", "NO_COLOR": ""} | environment).items():
        monkeypatch.setenv(name, value)
    stdout = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stdout", stdout)
    answer = types.SimpleNamespace(generate=lambda prompt, **_: iter(["\nO", "!"]))
    monkeypatch.setattr("rocmforge_jax.load", lambda path, **_: answer, raising=False)
    assert main(["generate", "--prompt", "ROMEO:", *words]) == 0
    assert stdout.getvalue() == expected


@pytest.mark.core
def test_json_holds_no_prompt(run):
    ran = run("generate", "--prompt", "a", "--echo", "--json")
    assert ran.code == 2 and "--json: not allowed with argument --echo" in ran.err


@pytest.mark.core
def test_json_is_the_whole_completion(run, loaded):
    options = dict(
        max_tokens=20, temperature=0.7, top_k=20, top_p=0.9, min_p=0.1, seed=7, stop=["\n\n"]
    )
    expected = loaded.generate("ROMEO:", **options)
    words = "--max-tokens 20 --temperature 0.7 --top-k 20 --top-p 0.9 --min-p 0.1 --seed 7".split()
    ran = run("generate", "--prompt", "ROMEO:", *words, "--stop", "\n\n", "--json")
    assert (ran.code, ran.err) == (0, "") and ran.out.count("\n") == 1
    fields = dataclasses.asdict(expected)
    del fields["top_logprobs"]  # no option of the command asks for them
    assert json.loads(ran.out) == fields


def test_the_prompt_may_come_from_a_file_or_stdin(run, loaded, monkeypatch, tmp_path):
    expected = loaded.generate("JULIET:\n", max_tokens=8).text + "\n"
    (tmp_path / "prompt.txt").write_text("JULIET:\n")
    assert (
        run("generate", "--prompt-file", tmp_path / "prompt.txt", "--max-tokens", 8).out == expected
    )
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"JULIET:\n")))
    assert run("generate", "--prompt-file", "-", "--max-tokens", 8).out == expected


@pytest.mark.core
def test_a_prompt_file_that_is_missing_or_no_text(run, tmp_path):
    (tmp_path / "raw").write_bytes(b"\xff")
    assert run("generate", "--prompt-file", tmp_path / "none").code == 2
    ran = run("generate", "--prompt-file", tmp_path / "raw")
    assert (ran.code, ran.err) == (
        2,
        f"rocmforge-jax: error: {tmp_path}/raw is not UTF-8 text: invalid start byte at byte 0\n",
    )


def test_a_prompt_that_is_too_long_is_refused_with_both_numbers(run, loaded):
    ran = run("generate", "--prompt", "ROMEO " * 600)
    count = len(loaded.tokenizer.encode("ROMEO " * 600))
    assert (ran.code, ran.out) == (
        2,
        "",
    ) and f"has {count} tokens, the context is {loaded.engine.context_length}" in ran.err


@pytest.mark.core
def test_from_a_cold_start_as_in_the_library(process, cache_home, lm):
    ran = process("generate", "--prompt", "ROMEO:", "--max-tokens", 24)
    out, err = ran.communicate(timeout=120)
    assert (ran.returncode, out, err) == (0, lm.generate("ROMEO:", max_tokens=24).text + "\n", "")
    assert any((cache_home / "rocmforge-jax").iterdir())


#: A model that never comes to an end, so that what happens meanwhile does not depend on how fast it
#: is. Where the process does not end when it should, it says what it waits for. Tests that a shell
#: began in the background ignore SIGINT, as do the processes they start.
ENDLESS = """
import faulthandler, itertools, signal, time, rocmforge_jax
faulthandler.dump_traceback_later(45)
signal.signal(signal.SIGINT, signal.default_int_handler)

class Endless:
    def generate(self, prompt, **_):
        for _ in itertools.count():
            yield "a"
            time.sleep(0.01)

rocmforge_jax.load = lambda path, **_: Endless()
"""


def ended(ran) -> tuple[int, str]:
    """The exit code, and what was said on stderr."""
    try:
        return ran.wait(60), ran.stderr.read()
    except subprocess.TimeoutExpired:
        ran.kill()
        pytest.fail(f"still running after 60 s, and said:\n{ran.stderr.read()}")


@pytest.mark.core
def test_a_reader_that_goes_away_ends_it_quietly(process):
    ran = process("generate", "--prompt", "a", before=ENDLESS)
    assert ran.stdout.read(1) == "a"
    ran.stdout.close()
    assert ended(ran) == (1, "")


@pytest.mark.core
def test_ctrl_c_ends_it_quietly(process):
    ran = process("generate", "--prompt", "a", before=ENDLESS)
    assert ran.stdout.read(1) == "a"
    ran.send_signal(signal.SIGINT)
    assert ended(ran) == (130, "\n")


def test_the_context_length_is_given_to_the_model(run):
    words = (
        "generate --prompt ROMEO: --max-tokens 99 --temperature 0 --json --context-length".split()
    )
    answer = json.loads(run(*words, 12).out)
    assert answer["finish_reason"] == "context"
    assert len(answer["ids"]) + answer["prompt_tokens"] == 12
