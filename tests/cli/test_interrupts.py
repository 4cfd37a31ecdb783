"""Ctrl-C and SIGTERM end every command at any moment: with their exit codes, and quietly."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from rocmforge_jax.cli.program import COMMANDS

#: Says "ready" once signals are handled: until then they are Python's own affair. The background
#: jobs of a shell ignore SIGINT, as do the processes that they start.
PROGRAM = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from rocmforge_jax.cli import interrupts, main
interrupts.end_at_once()
os.write(int(sys.argv.pop(1)), b"ready")
sys.exit(main())
"""
#: Command -> words, with {chat} for a model with a chat template.
WORDS = {
    "generate": "--prompt ROMEO: --max-tokens 24",
    "chat": "--model {chat} --max-tokens 24",
    "inspect": "demo --tensors",
    "tokenize": "demo text",
    "perplexity": "-",
    "bench": "demo --prompt-tokens 8 --tokens 8 --repeats 1",
    "doctor": "",
    "build-native": "",
}
TEXT = "ROMEO:\nWho art thou, and who am I to say?\n" * 8


@pytest.fixture(scope="module")
def start(with_chat_template):
    """start(command, ...) -> a command that runs and handles signals, with its text on stdin."""
    running = []

    def start(command, **environment):
        words = WORDS[command].format(chat=with_chat_template).split()
        reading, writing = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(writing), command, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[writing],
            text=True,
            env=os.environ | environment,
        )
        running.append(process)
        os.close(writing)
        with open(reading, "rb") as pipe:
            assert pipe.read(5) == b"ready"
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write("Who art thou?\n" if command == "chat" else TEXT)
            process.stdin.flush()
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def duration(start):
    """duration(command) -> seconds that it takes when nobody interrupts it."""
    known = {}

    def measure(command):
        if command not in known:
            begin = time.monotonic()
            process = start(command)
            process.communicate(timeout=300)
            known[command] = time.monotonic() - begin
        return known[command]

    return measure


def interrupted(process, seconds, number=signal.SIGINT):
    """Sends a signal after some time; the exit code and what was printed to stderr."""
    time.sleep(seconds)
    process.send_signal(number)
    begin = time.monotonic()
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err, time.monotonic() - begin


def check(command, code, out, err, waited):
    """A command that was interrupted ended quietly; chat may take it for the end of an answer."""
    said = r"(.*: .* bytes; a token reads .*\n.* tokens of prompt.*\n)?\n?"  # bench; the cursor
    assert re.fullmatch(said, err) is not None, err
    if code == 0:  # too late, so that everything was done
        assert out.endswith("\n") and (command == "chat" or waited < 20)
    else:
        assert code == 130


#: A dozen moments: shares of the time that a command takes.
MOMENTS = [
    *(("generate", share) for share in (0.0, 0.15, 0.3, 0.5, 0.7, 0.9)),
    *(("chat", share) for share in (0.2, 0.5)),
    ("perplexity", 0.6),
    ("bench", 0.4),
    ("doctor", 0.5),
    ("inspect", 0.3),
]


@pytest.mark.parametrize(("command", "share"), MOMENTS)
def test_ctrl_c_at_fixed_moments(start, duration, command, share):
    """Of the time that generate takes, to measure once."""
    whole = 0.2 if command == "inspect" else duration("generate")
    check(command, *interrupted(start(command), share * whole))


@pytest.mark.interrupts
@pytest.mark.parametrize("command", [module.NAME for module in COMMANDS])
def test_ctrl_c_at_random_moments(start, duration, command):
    """With `make test-interrupts`: a thousand times for all commands together."""
    whole, seed = duration(command), time.time_ns()
    moments = random.Random(seed)
    for i in range(1000 // len(COMMANDS)):
        seconds = moments.uniform(0, 1.05 * whole)
        try:
            check(command, *interrupted(start(command), seconds))
        except AssertionError as error:
            raise AssertionError(f"interrupt {i} of seed {seed}, after {seconds:.3f} s") from error


def test_sigterm(start, duration):
    assert interrupted(start("generate"), 0.5, signal.SIGTERM)[0:3:2] == (143, "")


def test_a_process_started_with_ctrl_c_ignored_goes_on(start):
    """As a shell starts what ends with &."""
    program = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    program += "; from rocmforge_jax.cli import main, interrupts; interrupts.end_at_once()"
    program += "; signal.raise_signal(signal.SIGINT); main()"
    ran = subprocess.run([sys.executable, "-c", program, "--version"], capture_output=True)
    assert ran.returncode == 0 and ran.stdout.startswith(b"rocmforge-jax")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_build_ends_its_compilers_and_leaves_nothing(start, tmp_path, number):
    (compiler := tmp_path / "c++").write_text(
        f"#!/bin/sh\ncase $1 in --version) echo 1;; *) echo $$ >> {tmp_path}/pids; sleep 100;; esac"
    )
    compiler.chmod(0o755)
    folder = tmp_path / "cpp"
    process = start("build-native", CXX=str(compiler), ROCMFORGE_CPP_FOLDER=str(folder))
    while not (tmp_path / "pids").exists():
        assert process.poll() is None
        time.sleep(0.01)
    code, out, err, waited = interrupted(process, 0.1, number)
    assert (code, out) == ({signal.SIGINT: 130, signal.SIGTERM: 143}[number], "") and waited < 20
    assert err.startswith("compiling the C++ library") and err.count("\n") <= 2
    assert [path.name for path in folder.iterdir()] == [".lock"]
    pids = (tmp_path / "pids").read_text().split()
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_while_a_library_is_in_a_long_call():
    """The main thread is in C, and runs no line of Python that could see a signal."""
    program = (
        "import ctypes; from rocmforge_jax.cli import interrupts; interrupts.end_at_once()\n"
        "print('in', flush=True)\n"
        "libc = ctypes.CDLL(None)\nwhile True: libc.usleep(10**6 - 1) or libc.sleep(100)"
    )
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import signal\nsignal.signal(2, signal.default_int_handler)\n{program}",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "in\n"
    code, _, err, waited = interrupted(process, 0.2)
    assert (code, err) == (130, "\n") and waited < 10


def test_in_a_destructor():
    """Where Python prints and loses an exception."""
    program = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from rocmforge_jax.cli import interrupts
interrupts.end_at_once()

class Held:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
        while True: pass

Held()
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "\n")


def test_at_the_interpreters_exit():
    """What runs there can be interrupted, what follows is over at once."""
    program = """
import atexit, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from rocmforge_jax.cli import interrupts
interrupts.end_at_once()
atexit.register(signal.raise_signal, signal.SIGINT)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "\n")
