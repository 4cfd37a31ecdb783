"""Checks the arguments of public functions: numbers of any library, flags, and keyword names.

Integers, numbers and flags may be Python's, NumPy's or JAX's, including arrays without axes. A bool
is not a number. This module does not import JAX.
"""

import difflib
import functools
import inspect
import math
import operator
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable)
#: Keyword of other programs -> its name in this package.
_SYNONYMS = {
    **dict.fromkeys(("n_ctx", "ctx", "ctx_size", "num_ctx"), "context_length"),
    **dict.fromkeys(("max_new_tokens", "n_predict", "max_length"), "max_tokens"),
    **dict.fromkeys(("torch_dtype", "compute_dtype"), "dtype"),
    **dict.fromkeys(("type_k", "type_v", "cache_type", "kv_dtype"), "cache_dtype"),
    "device_map": "device",
    "temp": "temperature",
    "typical": "typical_p",
    "repeat_penalty": "repetition_penalty",
    "repeat_last_n": "penalty_last_n",
}
_OFFLOAD = "the whole model is on the device, there is no partial offload"
_PACKED = (
    "weights stay packed in the types of the file: choose a file of the hub by its type, such as"
    " 'owner/repository:Q4_K_M', or pack a model with model.quantize()"
)
#: Keyword of other programs without an equal here -> what to do instead.
_EXPLANATIONS = {
    **dict.fromkeys(("n_gpu_layers", "gpu_layers", "num_gpu_layers", "ngl", "num_gpu"), _OFFLOAD),
    **dict.fromkeys(("quantization", "quantization_config", "quantize", "quant"), _PACKED),
    **dict.fromkeys(("load_in_4bit", "load_in_8bit"), _PACKED),
}


class _Brief(reprlib.Repr):
    """Shortens long collections and texts; describes integers too long to print."""

    def __init__(self):
        super().__init__()
        self.maxstring = self.maxother = 200

    def repr_int(self, x, level):
        bits = x.bit_length()
        return repr(x) if bits <= 256 else f"an integer of {bits:,} bits"


def shown(value: Any) -> str:
    """Returns `repr` of an argument for a message, with the middle of a long one omitted."""
    return _Brief().repr(value)


def as_integer(value: Any) -> int | None:
    """Returns a scalar integer as an int, or None for anything else."""
    if _is_no_number(value):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def as_number(value: Any) -> float | None:
    """Returns a scalar real number as a float, or None for anything else."""
    # `float` alone would also accept strings.
    if _is_no_number(value) or not (hasattr(value, "__float__") or hasattr(value, "__index__")):
        return None
    try:
        return float(value)
    except OverflowError:  # an int beyond the range of floats
        return math.inf if value > 0 else -math.inf
    except TypeError:
        return None


def _is_no_number(value) -> bool:
    """Returns whether a value is a bool, an array with axes, or has a non-numeric dtype."""
    kind = getattr(getattr(value, "dtype", None), "kind", "i")
    # ml_dtypes' floats, such as bfloat16, are of the kind V.
    return isinstance(value, bool) or kind not in "iufV" or getattr(value, "ndim", 0) > 0


def integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Returns an integer argument as an int.

    Args:
        name: The name of the argument in the message.
        value: The argument.
        low: The lowest value.
        high: The highest value; None for no limit.

    Raises:
        ValueError: The value is not an integer or out of range.
    """
    found = as_integer(value)
    if found is None or found < low or high is not None and found > high:
        bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be an integer {bounds}, got {shown(value)}")
    return found


def number(
    name: str, value: Any, low: float, high: float = math.inf, *, exclusive: bool = False
) -> float:
    """Returns a finite real argument as a float.

    Args:
        name: The name of the argument in the message.
        value: The argument.
        low: The lowest value; -inf for no limit.
        high: The highest value; inf for no limit.
        exclusive: Whether `low` itself is out of range.

    Raises:
        ValueError: The value is not a finite number or out of range.
    """
    found = as_number(value)
    if (
        found is None
        or not math.isfinite(found)
        or not low <= found <= high
        or exclusive
        and found == low
    ):
        bounds = [f"above {low}" if exclusive else f"of at least {low}"] if low > -math.inf else []
        bounds += [f"at most {high}"] if high < math.inf else []
        text = f"{name} must be a finite number {' and '.join(bounds)}".rstrip()
        raise ValueError(f"{text}, got {shown(value)}")
    return found


def flag(name: str, value: Any) -> bool:
    """Returns a boolean argument as a bool.

    Args:
        name: The name of the argument in the message.
        value: The argument.

    Raises:
        TypeError: The value is not a bool; the string "no", for example.
    """
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if isinstance(value, bool) or kind == "b" and getattr(value, "ndim", 0) == 0:
        return bool(value)
    raise TypeError(f"{name} must be True or False, got {value!r}")


def named_values(name: str, value: Any) -> dict[str, Any]:
    """Returns an argument that maps names to values as a dictionary, or {} for None.

    Args:
        name: The name of the argument in the message.
        value: The argument.

    Raises:
        TypeError: The value is not a mapping, or a key is not a string.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must map names to values, got {type(value).__name__} {value!r}")
    for key in value:
        if not isinstance(key, str):
            raise TypeError(f"{name} must have strings as keys, got {key!r}")
    return dict(value)


def check_keywords(
    function: Function,
    options: type | None = None,
    variables: Mapping[str, Iterable[str]] = {},
) -> Function:
    """Wraps a function so that the error for an unknown keyword suggests the nearest known one.

    Args:
        function: The function, or the `__init__` of a class.
        options: The TypedDict of the keywords that the function accepts as `**options`. The
            wrapper's signature lists them one by one, for editors and `help`.
        variables: The name of a parameter that accepts a dictionary -> common keys of the
            dictionary. The error explains how to pass a keyword in the dictionary if it is one of
            these keys or resembles no parameter.
    """
    signature = _with_options(inspect.signature(function), options)
    known = [name for name in signature.parameters if name != "self"]
    # For an `__init__`, the message contains the name of the class.
    name = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]

    @functools.wraps(function)
    def checked(*args, **given):
        for keyword in given:
            if keyword not in known:
                raise TypeError(_unknown_keyword(name, keyword, known, variables))
        return function(*args, **given)

    checked.__signature__ = signature  # type: ignore[attr-defined]
    return cast(Function, checked)


def _with_options(signature: inspect.Signature, options: type | None) -> inspect.Signature:
    """Returns a signature with the keywords of a TypedDict in place of `**options`."""
    if options is None:
        return signature
    named = [one for one in signature.parameters.values() if one.kind != one.VAR_KEYWORD]
    listed = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in options.__annotations__.items()
    ]
    return signature.replace(parameters=[*named, *listed])


def _unknown_keyword(
    function: str, given: str, known: list[str], variables: Mapping[str, Iterable[str]]
) -> str:
    lowered = {name.lower(): name for name in known}
    if explanation := _EXPLANATIONS.get(given.lower()):
        return f"{function}() got an unexpected keyword {shown(given)}; {explanation}"
    synonym = _SYNONYMS.get(given.lower())
    close = difflib.get_close_matches(given.lower(), lowered, n=1)
    near = synonym if synonym in known else lowered[close[0]] if close else None
    hint = f"did you mean {near!r}?" if near else f"it takes {', '.join(known)}"
    for keyword, usual in variables.items():
        remedy = f"give variables of the {keyword} as {keyword}={{{shown(given)}: ...}}"
        if given in usual:
            hint = remedy
        elif not near:
            hint = f"{hint}; {remedy}"
    return f"{function}() got an unexpected keyword {shown(given)}; {hint}"
