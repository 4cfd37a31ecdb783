"""Exit codes, and one friendly line for whatever the user can put right."""

import re
import struct
import sys

import pytest

import rocmforge_jax
from rocmforge_jax.cli import generate, main
from rocmforge_jax.cli.common import SAMPLING
from rocmforge_jax.cli.program import COMMANDS
from rocmforge_jax.gguf import write_gguf
from rocmforge_jax.locate import DEMO

pytestmark = pytest.mark.core


def throw(error):
    raise error


def refused(ran):
    """The line on stderr of a command that was refused."""
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("rocmforge-jax: error: ") and ran.err.count("\n") == 1
    return ran.err


def test_help_names_every_command(run):
    ran = run("--help")
    assert ran.code == 0
    assert [
        word for word in ("generate", "chat", "inspect", "tokenize", "bench") if word not in ran.out
    ] == []


@pytest.mark.parametrize("command", [module.NAME for module in COMMANDS])
def test_each_command_has_help(run, command):
    ran = run(command, "--help")
    assert ran.code == 0 and ran.out.startswith(f"usage: rocmforge-jax {command}")


def test_version(run):
    ran = run("--version")
    assert (ran.code, ran.out.split()[0]) == (0, "rocmforge-jax")


def test_a_mistyped_command_gets_the_nearest(run):
    ran = run("generat", "demo")
    assert ran.code == 2 and ran.err.endswith("no command 'generat' (did you mean generate?)\n")


@pytest.mark.parametrize(
    "words",
    ["", "frob", "inspect", "generate", "chat", "generate --prompt a --top-k few", "--nope"],
)
def test_wrong_usage_is_exit_code_2(run, words):
    ran = run(*words.split())
    assert (ran.code, ran.out) == (2, "") and ran.err.startswith("usage: ")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("generate -p a -ngl 99", "-ngl .*all layers are on the device"),
        ("generate -p a --gpu-layers=9", "--gpu-layers .*no partial offload"),
        ("generate -p a -t 4", "-t .*taskset"),
        ("generate --promt a", "--promt .did you mean --prompt?"),
        ("generate -p a --top_k 3", "--top_k .did you mean --top-k?"),
        ("generate -p a --ctx-size 3", "did you mean --context-length?"),
        ("chat -m x --predict 3", "did you mean --max-tokens?"),
        ("generate -hf a/b -p a", "did you mean --model owner/repository:TYPE?"),
        ("generate -p a more", "more"),
        ("inspect -m x", "-m .give the file without -m"),
        ("generate x.gguf -p a", "x.gguf .a model is given as --model x.gguf"),
        ("bench demo --xyzzy", "--xyzzy"),
    ],
)
def test_unknown_options_print_the_usage_of_their_command(run, words, reason):
    ran = run(*words.split())
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"usage: rocmforge-jax {words.split()[0]} ")
    found = ran.err.partition("error: unrecognized arguments: ")[2]
    assert re.search(reason.replace("?", "[?]"), found)


def test_short_options_are_those_of_llama_cpp(run, monkeypatch):
    found = {}
    monkeypatch.setattr(generate, "run", lambda options: found.update(vars(options)))
    words = "generate -m x -p=-a -n 3 -c 9 -s 4 --temp 0.5 --repeat-penalty 1.5"
    assert run(*words.split()).code == 0
    expected = dict(model="x", prompt="-a", max_tokens=3, context_length=9, seed=4)
    assert found.items() >= (expected | dict(temperature=0.5, repetition_penalty=1.5)).items()
    assert run("generate", "-f", "file").code == 0 and found["prompt_file"] == "file"


@pytest.fixture
def hand_made(tmp_path):
    """What users hand to a program by mistake: name -> path."""
    metadata = {"general.architecture": "llama"}
    (tmp_path / "text.gguf").write_bytes(b"not a model")
    (tmp_path / "empty.gguf").write_bytes(b"")
    (tmp_path / "cut.gguf").write_bytes(DEMO.read_bytes()[:100_000])
    (tmp_path / "old.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 1, 0, 0))
    write_gguf(tmp_path / "bare.gguf", metadata, {})
    write_gguf(tmp_path / "lama.gguf", metadata | {"general.architecture": "lama"}, {})
    write_gguf(tmp_path / "unigram.gguf", metadata | {"tokenizer.ggml.model": "gpt3"}, {})
    return lambda name: tmp_path / name


#: Each command with a file in the place of {}.
LOOKERS = [
    words.split()
    for words in (
        "inspect {}",
        "tokenize {} text",
        "bench {}",
        "generate --prompt a --model {}",
        "chat --model {}",
    )
]


@pytest.mark.parametrize("words", LOOKERS, ids=lambda words: words[0])
@pytest.mark.parametrize(
    "name, reason",
    [
        ("missing.gguf", "no file"),
        (".", "is a folder"),
        ("text.gguf", "is text, not a GGUF file"),
        ("empty.gguf", "the file is empty"),
        ("cut.gguf", "it is cut short or damaged.* missing: download it again"),
        ("old.gguf", "version 1"),
    ],
)
def test_a_file_that_is_no_model_is_refused_in_one_line(run, hand_made, words, name, reason):
    assert re.search(reason, refused(run(*(word.format(hand_made(name)) for word in words))))


def test_an_unknown_architecture_names_the_nearest(run, hand_made):
    err = refused(run("bench", hand_made("lama.gguf")))
    assert "'lama' is not in this version's table" in err and "did you mean llama?" in err


def test_an_unknown_tokenizer_names_the_nearest(run, hand_made):
    err = refused(run("tokenize", hand_made("unigram.gguf"), "text"))
    assert "'gpt3'" in err and "gpt2" in err


@pytest.mark.parametrize("words", ["generate --prompt a", "bench demo", "perplexity {text}"])
def test_an_environment_that_chooses_nothing_known_is_refused(run, monkeypatch, tmp_path, words):
    monkeypatch.setenv("ROCMFORGE_BACKEND", "cuda")
    (text := tmp_path / "text").write_text("some text")
    ran = run(*words.format(text=text).split())
    message = "ROCMFORGE_BACKEND must be one of auto, pallas, cpp, xla, got 'cuda'"
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.splitlines()[-1] == f"rocmforge-jax: error: {message}"


def test_a_file_of_the_hub_without_the_hub_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'rocmforge-jax[hub]'" in refused(run("inspect", "owner/model/file.gguf"))


@pytest.mark.parametrize(
    "option, value, reason",
    [
        ("--temperature", "-1", "--temperature must be"),
        ("--temperature", "nan", "--temperature must be"),
        ("--top-k", "-1", "--top-k must be"),
        ("--top-p", "0", "--top-p must be"),
        ("--typical-p", "1.5", "--typical-p must be"),
        ("--min-p", "2", "--min-p must be"),
        ("--repetition-penalty", "0", "--repetition-penalty must be"),
        ("--penalty-last-n", "257", "--penalty-last-n must be"),
        ("--seed", "18446744073709551616", "--seed must be"),
        ("--max-tokens", "0", "--max-tokens must be at least 1, got 0"),
        ("--stop", "", "stop strings"),
        ("--context-length", "1", "--context-length must be an integer from 2 to .*, got 1"),
    ],
)
@pytest.mark.parametrize(
    "command", [["generate", "--prompt", "a"], ["chat"]], ids=lambda words: words[0]
)
def test_bad_values_are_refused_before_a_model_is_opened(run, command, option, value, reason):
    assert re.search(reason, refused(run(*command, "--model", "missing.gguf", option, value)))


def test_the_defaults_in_the_help_are_those_of_the_library():
    params = vars(rocmforge_jax.SamplingParams())
    params.pop("logit_bias")
    assert {name: default for name, (_, default, _) in SAMPLING.items()} == params


def test_control_characters_of_a_message_stay_on_one_line(run):
    assert "no file a b.gguf" in refused(run("inspect", "a\nb.gguf"))


@pytest.mark.parametrize(
    "error, code",
    [
        (PermissionError(13, "Permission denied"), 2),
        (OSError(28, "No space left on device"), 1),
        (MemoryError("the model does not fit"), 1),
        (RuntimeError("RESOURCE_EXHAUSTED: out of device memory"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_failures_of_the_machine_are_one_line(run, monkeypatch, error, code):
    monkeypatch.setattr(generate, "run", lambda _: throw(error))
    assert run("generate", "--prompt", "a") == (code, "", f"rocmforge-jax: error: {error}\n")


def test_a_package_that_is_missing_is_one_line(run, monkeypatch):
    error = ModuleNotFoundError("No module named 'jax'", name="jax")
    monkeypatch.setattr(generate, "run", lambda _: throw(error))
    assert "No module named 'jax'; `rocmforge-jax doctor`" in refused(
        run("generate", "--prompt", "a")
    )


def test_a_name_of_5000_letters_is_shortened(run):
    assert len(refused(run("inspect", "n" * 5000))) < 1000


def test_what_nobody_foresaw_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(generate, "run", lambda _: throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        main(["generate", "--prompt", "a"])


def test_ctrl_c_ends_quietly(run, monkeypatch):
    monkeypatch.setattr(generate, "run", lambda _: throw(KeyboardInterrupt()))
    assert run("generate", "--prompt", "a") == (130, "", "\n")
