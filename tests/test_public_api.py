"""The public names are there, documented and typed."""

import inspect
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

import rocmforge_jax
from rocmforge_jax.locate import DEMO

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "adapters",
    "explore",
    "export",
    "formats",
    "generate",
    "gguf",
    "models",
    "nn",
    "quant",
    "text",
)
NAMES = {
    "load",
    "save",
    "LanguageModel",
    "Completion",
    "Piece",
    "open_gguf",
    "GGUFError",
    "load_tokenizer",
    "ChatTemplateError",
    "dequantize",
    "quantize",
    "QTensor",
    "QParam",
    "SamplingParams",
    "LogitsProcessor",
    "enable_compilation_cache",
    "export_program",
    "lora",
    "merge_lora",
    "remove_lora",
    "save_lora",
    "load_lora",
    "validate_matmul_dims",
    "validate_attention_dims",
    *PACKAGES,
}


@pytest.mark.core
def test_the_package_lists_its_public_names():
    assert NAMES <= set(rocmforge_jax.__all__) and set(dir(rocmforge_jax)) == set(
        rocmforge_jax.__all__
    )


def own_docstring(value):
    """The docstring that a class or function was written with.

    `inspect.getdoc` would also give a base class's, or the signature that a dataclass or a
    NamedTuple makes up.
    """
    doc = vars(value).get("__doc__") if isinstance(value, type) else value.__doc__
    name = getattr(value, "__name__", type(value).__name__)  # some values are callable
    return None if doc and doc.startswith(f"{name}(") else doc


@pytest.mark.core
@pytest.mark.parametrize("name", ["", *PACKAGES])
def test_every_public_name_exists_and_is_documented(name):
    package = getattr(rocmforge_jax, name) if name else rocmforge_jax
    public = {name: getattr(package, name) for name in package.__all__}
    functions = {name: value for name, value in public.items() if callable(value)}
    assert package.__doc__ and functions
    assert [name for name, value in functions.items() if not own_docstring(value)] == []


@pytest.mark.core
def test_a_made_up_docstring_does_not_count():
    @dataclass
    class Made:
        field: int

    class Documented(Made):
        """Written."""

    class Inherited(Documented):
        pass

    assert inspect.getdoc(Made) and inspect.getdoc(Inherited)
    assert [own_docstring(c) for c in (Made, Documented, Inherited)] == [None, "Written.", None]


@pytest.mark.core
def test_the_packages_have_types_and_a_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for package in ("rocmforge_jax", "pallas_kernels"):
        assert (ROOT / package / "py.typed").is_file()
        assert "py.typed" in project["tool"]["setuptools"]["package-data"][package]
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.\w+)?", rocmforge_jax.__version__)
    dynamic = project["tool"]["setuptools"]["dynamic"]
    assert dynamic == {"version": {"attr": "rocmforge_jax.__version__"}}


@pytest.mark.core
@pytest.mark.parametrize(
    "owner, names",
    [
        (rocmforge_jax, NAMES),
        (rocmforge_jax.nn, {"swiglu"}),
        (rocmforge_jax.formats, {"dequantize"}),
    ],
)
def test_the_names_that_the_design_promises(owner, names):
    assert [name for name in names if not hasattr(owner, name)] == []


@pytest.mark.core
@pytest.mark.parametrize(
    "function, parameters",
    [
        (rocmforge_jax.load, "path dtype context_length strict"),
        (rocmforge_jax.LanguageModel.generate, "prompt max_tokens stop stream"),
        (rocmforge_jax.models.Decoder.__call__, "tokens_BT cache positions_BT lengths_B last_only"),
        (rocmforge_jax.models.Decoder.init_cache, "batch length dtype"),
        (rocmforge_jax.formats.dequantize, "dtype count"),
        (rocmforge_jax.load_tokenizer(DEMO).encode, "text add_special parse_special"),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_parameters_have_the_names_that_the_design_promises(function, parameters):
    assert [
        name for name in parameters.split() if name not in inspect.signature(function).parameters
    ] == []


@pytest.mark.core
def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'rocmforge_jax' has no attribute 'lode'"):
        rocmforge_jax.lode  # noqa: B018


@pytest.mark.core
def test_a_file_that_is_wrong_is_a_value_error():
    assert issubclass(rocmforge_jax.GGUFError, ValueError)
