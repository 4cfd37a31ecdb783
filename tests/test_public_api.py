"""The public names are there, documented, and what the README shows runs."""

import inspect
import re
import subprocess
from pathlib import Path

import pytest

import rocmforge_jax
from rocmforge_jax.locate import DEMO

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("formats", "generate", "gguf", "models", "nn", "quant", "text")
NAMES = {
    "load",
    "LanguageModel",
    "Completion",
    "open_gguf",
    "GGUFError",
    "load_tokenizer",
    "ChatTemplateError",
    "dequantize",
    "QTensor",
    "QParam",
    "SamplingParams",
    "validate_matmul_dims",
    "validate_attention_dims",
    *PACKAGES,
}


@pytest.mark.core
def test_the_package_lists_its_public_names():
    assert NAMES <= set(rocmforge_jax.__all__) and set(dir(rocmforge_jax)) == set(
        rocmforge_jax.__all__
    )


@pytest.mark.core
@pytest.mark.parametrize("name", ["", *PACKAGES])
def test_every_public_name_exists_and_is_documented(name):
    package = getattr(rocmforge_jax, name) if name else rocmforge_jax
    assert package.__doc__
    documented = [public for public in package.__all__ if callable(getattr(package, public))]
    assert [public for public in documented if not inspect.getdoc(getattr(package, public))] == []


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


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md"])
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch):
    examples = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert examples
    monkeypatch.chdir(tmp_path)
    architectures = "rocmforge_jax.models.architectures.ARCHITECTURES"
    monkeypatch.setattr(
        architectures, dict(rocmforge_jax.models.ARCHITECTURES)
    )  # a page registers one
    names = {}
    for example in examples:
        exec(compile(example, page, "exec"), names)


@pytest.mark.core
def test_links_of_the_pages_lead_somewhere():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    links = [
        (page, link) for page in pages for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    ]
    assert (
        links
        and [f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()]
        == []
    )


@pytest.mark.core
def test_no_file_names_a_place_of_one_machine():
    """Home folders, and where packages come from, are the user's own."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a checkout of git")
    places = re.compile(rb"(?<![\w.])/(?:work|root|home/\w+)/|index-url\b|find-links\b|\bpypi\.\w")
    texts = [
        path
        for name in listed.split(b"\0")
        if name and (path := ROOT / name.decode()).suffix not in (".gguf",) and path.is_file()
    ]
    found = {
        str(path.relative_to(ROOT)): places.findall(path.read_bytes())
        for path in texts
        if path != Path(__file__).resolve()
    }
    assert {path: hits for path, hits in found.items() if hits} == {}
