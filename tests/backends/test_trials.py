"""Code is tried before its first use; what passed is remembered, what failed is named once."""

import re
import warnings

import jax
import jax.numpy as jnp
import pytest

from rocmforge_jax.backends.trials import Trials

pytestmark = pytest.mark.core


def fail():
    raise RuntimeError("ptxas died")


def error_of(value, tried):
    def error():
        tried.append(value)
        return jnp.float32(value)

    return error


@pytest.fixture
def file(tmp_path):
    return tmp_path / "trials" / "key.txt"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (fail, "the kernel does not run on a GPU: RuntimeError: ptxas died"),
        (lambda: 1.0, "the kernel is wrong on a GPU: its relative error is 1.0e+00, allowed 1e-04"),
        (lambda: float("nan"), "its relative error is nan, allowed 1e-04"),
    ],
    ids=["raises", "wrong", "nan"],
)
def test_a_failure_is_named_in_one_warning_and_in_every_refusal(error, message, file):
    trials = Trials(file, "a GPU", "Buy another")
    with pytest.warns(UserWarning, match=re.escape(message)) as warned:
        with pytest.raises(NotImplementedError, match=re.escape(message)):
            trials.require("the kernel", error, 1e-4)
    (only,) = warned
    assert "Plain XLA is used instead. Buy another." in str(only.message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(NotImplementedError, match=re.escape(message)):
            trials.require("the kernel", error, 1e-4)
    assert not file.exists()


def test_each_name_is_tried_once_even_while_something_is_traced(file):
    trials, tried = Trials(file, "a GPU"), []

    @jax.jit
    def step(x):
        trials.require("one", error_of(1e-5, tried), 1e-4)
        trials.require("two", error_of(2e-5, tried), 1e-4)
        trials.require("one", error_of(3e-5, tried), 1e-4)
        return x + 1

    assert step(jnp.float32(1)) == 2
    assert tried == [1e-5, 2e-5]


def test_what_passed_is_remembered_for_later_programs_and_what_failed_is_tried_again(file):
    tried = []

    def start(file):
        """Tries two kernels in a program that starts now, and returns the errors it computed."""
        trials, before = Trials(file, "a GPU"), len(tried)
        trials.require("good", error_of(0.0, tried), 1e-4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(NotImplementedError):
                trials.require("bad", error_of(1.0, tried), 1e-4)
        return tried[before:]

    assert start(file) == [0.0, 1.0] and start(file) == [1.0]
    assert file.read_text().splitlines() == ["good"]
    assert start(file.with_name("another key.txt")) == [0.0, 1.0]
    read_only = type(file)("/dev/null/trials.txt")
    assert start(read_only) == start(read_only) == [0.0, 1.0]


def test_a_damaged_file_counts_as_empty(file):
    file.parent.mkdir()
    file.write_bytes(bytes(range(256)) * 4)
    tried = []
    Trials(file, "a GPU").require("good", error_of(0.0, tried), 1e-4)
    assert tried == [0.0]
