"""Which backend is chosen for an operation, and what reports are told."""

import pytest

from rocmforge_jax import settings
from rocmforge_jax.backends import (
    BACKENDS,
    BackendError,
    Choice,
    Numerics,
    Operation,
    WrongDevice,
    choose,
    record,
)

pytestmark = pytest.mark.core


def can(*operands):
    return f"takes {len(operands)} operands"


def cannot(*operands):
    raise NotImplementedError(f"{operands[0]} is too large")


def elsewhere(*operands):
    raise WrongDevice("this is a toaster")


def test_the_first_backend_that_can_is_chosen():
    assert BACKENDS == ("pallas", "cpp", "xla")
    both = Operation("sum", {"cpp": can, "pallas": can})
    assert choose(both, (1, 2)) == Choice("pallas", "takes 2 operands")
    assert choose(both, (1, 2), "auto") == choose(both, (1, 2), None)
    assert choose(both, (1, 2), "cpp") == Choice("cpp", "takes 2 operands")
    assert choose(Operation("sum", {"pallas": cannot, "cpp": can}), (9,)).name == "cpp"


@pytest.mark.parametrize(
    ("checks", "wanted", "reason"),
    [
        ({"pallas": cannot}, None, "9 is too large"),
        ({"pallas": cannot, "cpp": elsewhere}, None, "9 is too large"),
        ({"pallas": elsewhere, "cpp": cannot}, None, "9 is too large"),
        ({"pallas": elsewhere}, None, "of course"),
        ({"pallas": can}, "xla", "the backend xla is asked for"),
        ({}, None, "of course"),
        ({}, "pallas", "of course"),
        ({}, "xla", "of course"),
    ],
)
def test_plain_xla_has_the_reason_of_this_device(checks, wanted, reason):
    operation = Operation("sum", checks, note="of course")
    assert choose(operation, (9,), wanted) == Choice("xla", reason)


def test_without_a_note_plain_xla_has_the_reason_of_other_devices():
    assert choose(Operation("sum", {"cpp": elsewhere}), ()) == Choice("xla", "this is a toaster")
    assert choose(Operation("sum"), ()) == Choice("xla", "no other backend computes this")


def test_a_backend_that_is_demanded_must_be_able():
    operation = Operation("sum", {"pallas": cannot, "cpp": can})
    with pytest.raises(BackendError, match="sum: pallas: 9 is too large; .*'auto'"):
        choose(operation, (9,), "pallas")
    fused = Operation("sum", {"pallas": cannot, "cpp": can}, fused=True)
    assert choose(fused, (9,), "pallas") == Choice("xla", "9 is too large")


def test_an_operation_that_a_backend_has_no_code_for_is_left_to_xla():
    operation = Operation("sum", {"pallas": can})
    assert choose(operation, (9,), "cpp") == Choice("xla", "cpp has no code for sum")


def test_unknown_names_are_refused():
    for call in (
        lambda: choose(Operation("sum"), (), "triton"),
        lambda: Numerics(backend="triton"),
    ):
        with pytest.raises(ValueError, match="auto, pallas, cpp, xla, got 'triton'"):
            call()


def test_wrong_operands_are_not_a_reason_to_fall_back():
    def wrong(*operands):
        raise ValueError("3 is not 4")

    with pytest.raises(ValueError, match="3 is not 4"):
        choose(Operation("sum", {"pallas": wrong}), (3,))


def test_decisions_are_recorded_in_order():
    first, second = Operation("first", {"cpp": can}), Operation("second", {"cpp": cannot})
    choose(first, (1,))
    with record() as decisions:
        choose(first, (1,))
        with record() as inner:
            choose(second, (2,))
    assert [(d.operation.name, d.operands, d.choice.name) for d in decisions] == [
        ("first", (1,), "cpp")
    ]
    assert [(d.operation.name, d.choice) for d in inner] == [
        ("second", Choice("xla", "2 is too large"))
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(dtype="int8"), "float32, bfloat16, float16, got 'int8'"),
        (dict(dtype="float64"), "float32, bfloat16, float16, got 'float64'"),
        (dict(activations="int4"), "int16, int8, float, got 'int4'"),
    ],
)
def test_numerics_that_cannot_compute_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Numerics(**fields)


def test_equal_numerics_are_one_static_value():
    assert Numerics("bfloat16") == Numerics("bfloat16", "int16", "auto")
    assert hash(Numerics("bfloat16")) == hash(Numerics("bfloat16", "int16", None))


@pytest.mark.parametrize("value", ["", None, "auto", *BACKENDS])
def test_the_environment_names_a_backend(value, monkeypatch):
    monkeypatch.delenv("ROCMFORGE_BACKEND", raising=False)
    if value is not None:
        monkeypatch.setenv("ROCMFORGE_BACKEND", value)
    assert settings.backend() == (value or "auto")


def test_other_values_of_the_environment_are_refused(monkeypatch):
    monkeypatch.setenv("ROCMFORGE_BACKEND", "triton")
    with pytest.raises(settings.SettingError, match="ROCMFORGE_BACKEND .* cpp, xla, got 'triton'"):
        settings.backend()
