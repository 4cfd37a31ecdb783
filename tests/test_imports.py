"""Imports run one way only, and programs that compute nothing import no jax."""

import ast
import subprocess
import sys

import pytest

from tests import import_graph
from tests.import_graph import (
    ROOT,
    arrows,
    borrowed_names,
    circles,
    imports,
    modules,
    tree,
)

pytestmark = pytest.mark.core

#: Part -> the parts that it may import besides itself. A part is the first name below
#: rocmforge_jax, or pallas_kernels as a whole.
MAY_IMPORT = {
    "arguments": set(),
    "formats": {"arguments"},
    "hub": {"gguf"},
    "hub_names": set(),
    "locate": {"gguf", "hub", "hub_names", "settings"},
    "settings": set(),
    "compilation_cache": {"locate", "settings"},
    "pallas_kernels": set(),
    "html": set(),
    "progress": {"arguments"},
    "gguf": {"formats", "html"},
    "text": {"arguments", "gguf"},
    "cpp": {"pallas_kernels", "settings"},
    "backends": {"arguments", "pallas_kernels", "formats", "cpp", "locate", "settings"},
    "quant": {
        "arguments",
        "backends",
        "pallas_kernels",
        "formats",
        "cpp",
        "html",
        "locate",
        "settings",
    },
    "nn": {"arguments", "quant", "backends", "html", "pallas_kernels"},
    "memory": set(),
    "ahead": {"gguf", "quant", "backends", "cpp", "memory", "settings"},
    "models": {
        "arguments",
        "formats",
        "gguf",
        "html",
        "quant",
        "nn",
        "backends",
        "ahead",
        "memory",
        "settings",
    },
    "adapters": {"arguments", "formats", "gguf", "models", "nn", "quant"},
    "programs": {"arguments", "backends", "models"},
    "generate": {"arguments", "gguf", "html", "models", "nn", "progress", "quant"},
    "completion": {"generate", "gguf", "html", "text"},
    "requested": {"arguments", "completion", "generate"},
    "language_model": {
        "arguments",
        "completion",
        "requested",
        "generate",
        "html",
        "models",
        "progress",
        "text",
    },
    "loading": {
        "arguments",
        "backends",
        "compilation_cache",
        "generate",
        "gguf",
        "language_model",
        "locate",
        "models",
        "progress",
        "text",
    },
}
MAY_IMPORT["export"] = {
    "arguments",
    "formats",
    "gguf",
    "language_model",
    "models",
    "nn",
    "progress",
    "quant",
    "text",
}
MAY_IMPORT["explore"] = {
    *("arguments", "formats", "gguf", "html", "locate", "models", "nn", "quant", "text")
}
#: The package's own public names are the part "": only programs import those.
MAY_IMPORT["cli"] = set(MAY_IMPORT) - {"pallas_kernels"} | {""}
MAY_IMPORT["__main__"] = {"cli"}
MAY_IMPORT["demo"] = set(MAY_IMPORT) | {""}  # a leaf on top, which no other part imports

#: (file or folder, imported name or *) -> why the import is inside a function.
LAZY = {
    ("rocmforge_jax/__init__.py", "import_module"): "importing the package is light",
    ("rocmforge_jax/quant/__init__.py", "import_module"): "weights are read while flax loads",
    ("rocmforge_jax/explore/plots.py", "matplotlib.pyplot"): "an optional dependency",
    ("rocmforge_jax/formats/__init__.py", "*"): "declarations are plain data, without jax",
    ("rocmforge_jax/formats/_lazy.py", "import_module"): "declarations are plain data, without jax",
    ("rocmforge_jax/formats/iq.py", "gguf.quants"): "only the I-quants need gguf's tables",
    ("rocmforge_jax/gguf/writer.py", "*"): "reading a file needs no gguf package",
    ("rocmforge_jax/export/hugging_face/tensors.py", "safetensors.numpy"): "an optional dependency",
    ("rocmforge_jax/adapters/peft.py", "safetensors.numpy"): "an optional dependency",
    ("rocmforge_jax/hub.py", "huggingface_hub"): "an optional dependency",
    ("rocmforge_jax/hub.py", "huggingface_hub.constants"): "an optional dependency",
    ("pallas_kernels/jax_triton/calls.py", "*"): "an optional dependency",
    ("rocmforge_jax/text/render_worker.py", "resource"): "a module that Windows lacks",
    ("rocmforge_jax/ahead.py", "*"): "reading begins before jax is imported",
    ("pallas_kernels/triton.py", "jax.experimental.pallas.triton"): "only kernels for GPUs need it",
    ("rocmforge_jax/cli", "*"): "a command imports what it needs, so that --help answers at once",
    ("rocmforge_jax/cpp/units.py", "jaxlib"): "only building needs its headers",
}
#: The files that read environment variables.
READ_ENVIRONMENT = {
    "rocmforge_jax/settings.py",
}
TRITON = "jax.experimental.pallas.triton"
#: What the parts above `backends` may use of the kernels' package: data types and plain references,
#: no kernel.
NO_KERNELS = {
    "pallas_kernels.activation_functions",
    "pallas_kernels.attention.AttentionRule",
    "pallas_kernels.attention.NewTokens",
    "pallas_kernels.attention.checks.check_operands",
    "pallas_kernels.attention.reference",
    "pallas_kernels.delta_rule.operands",
    "pallas_kernels.dequantize.reference",
    "pallas_kernels.packing",
    "pallas_kernels.qmatmul.Activations",
    "pallas_kernels.qmatmul.Product",
    "pallas_kernels.qmatmul.activations.quantize_reference",
    "pallas_kernels.recurrence.operands",
    "pallas_kernels.router.Routing",
    "pallas_kernels.router.Tiles",
    "pallas_kernels.router.reference",
    "pallas_kernels.selective_scan.operands",
    "pallas_kernels.symbolic_sizes.surely",
    "pallas_kernels.targets",
}


def part(module):
    """rocmforge_jax.nn.cache -> nn; pallas_kernels.packing -> pallas_kernels."""
    first, _, rest = module.partition(".")
    return first if first == "pallas_kernels" else rest.split(".")[0]


def file(module):
    return modules()[module].relative_to(ROOT).as_posix()


def hidden_imports():
    """(module, imported name) of every import inside a function."""
    for module in modules():
        yield from ((module, i.name) for i in imports(module) if i.hidden)
        if "import_module(" in modules()[module].read_text():
            yield module, "import_module"


def reasons(module, name):
    """The keys of LAZY that allow an import."""
    return {
        (place, allowed)
        for place, allowed in LAZY
        if f"{file(module)}/".startswith(f"{place}/") and allowed in (name, "*")
    }


def test_no_import_points_up():
    wrong = [
        f"{module} imports {other}"
        for module, other in sorted(arrows())
        if part(module) and part(other) not in MAY_IMPORT[part(module)] | {part(module)}
    ]
    assert wrong == []


def test_only_backends_import_kernels():
    """And whatever is listed as harmless is used."""
    used = {
        name.name if name.name in NO_KERNELS else name.name.rpartition(".")[0]
        for module in modules()
        if part(module) not in ("pallas_kernels", "backends", "cpp")
        for name in imports(module)
        if name.name.startswith("pallas_kernels")
    }
    assert used == NO_KERNELS


def test_the_parts_are_those_of_the_package():
    assert {part(module) for module in modules()} - {""} == set(MAY_IMPORT)


def test_the_order_of_the_parts_has_no_circle():
    assert circles({(a, b) for a, below in MAY_IMPORT.items() for b in below - {a}}) == []


def test_no_circle_of_files():
    """Imports inside functions count: they are where a circle hides."""
    assert circles(arrows()) == []


def test_imports_inside_functions_have_a_reason():
    found = [
        f"{module} imports {name}" for module, name in hidden_imports() if not reasons(module, name)
    ]
    assert found == []


def test_every_reason_for_an_import_inside_a_function_is_needed():
    assert set().union(*(reasons(*found) for found in hidden_imports())) == set(LAZY)


def test_names_are_imported_from_where_they_are_defined():
    assert sorted(borrowed_names()) == []


@pytest.fixture
def small_house(tmp_path, monkeypatch):
    """small_house(module=text, ...): the import graph reads these files instead of the packages."""
    caches = (modules, tree, imports, import_graph._lazy_names)

    def build(**files):
        (tmp_path / "house").mkdir()
        for name, text in files.items():
            (tmp_path / "house" / f"{name}.py").write_text(text)
        monkeypatch.setattr(import_graph, "ROOT", tmp_path)
        monkeypatch.setattr(import_graph, "PACKAGES", ("house",))
        for cache in caches:
            cache.cache_clear()

    yield build
    for cache in caches:
        cache.cache_clear()


def test_a_circle_hidden_in_a_function_is_found(small_house):
    small_house(
        a="def f():\n    from house import b",
        b="from house.c import name",
        c="import house.a\nname = 1",
        d="from house import a\nif TYPE_CHECKING:\n    from house import e",
        e="from house import d",
    )
    assert circles(arrows()) == [["house.a", "house.b", "house.c"]]
    assert list(hidden_imports()) == [("house.a", "house.b")]


def test_a_name_imported_when_it_is_first_used_is_an_arrow(small_house):
    small_house(__init__="_WHERE = {'name': 'a'}", a="name = 1", b="from house import name")
    assert arrows() == {("house.b", "house.a")}


def test_a_name_of_a_third_file_is_found(small_house):
    small_house(
        low="def current(): pass",
        middle="from house import low",
        high="from house import middle\nmiddle.low.current()",
        higher="from house.middle import low",
        right="from house import low, middle\nlow.current()\ndef f(middle): return middle.low",
    )
    assert borrowed_names() == {
        ("house.high", "house.middle.low"),
        ("house.higher", "house.middle.low"),
    }


def test_one_file_imports_the_triton_backend():
    found = {
        file(module)
        for module in modules()
        if any(i.name.startswith(TRITON) for i in imports(module))
    }
    assert found == {"pallas_kernels/triton.py"}


def test_few_files_read_the_environment():
    def reads(module):
        names = {getattr(node, "attr", None) for node in ast.walk(tree(module))}
        names |= {i.name.removeprefix("os.") for i in imports(module)}
        return not names.isdisjoint({"environ", "getenv"})

    assert {file(module) for module in modules() if reads(module)} == READ_ENVIRONMENT


@pytest.mark.parametrize(
    "program",
    [
        "import rocmforge_jax",
        "import rocmforge_jax; rocmforge_jax.open_gguf(rocmforge_jax.locate.DEMO).tensors",
        "import rocmforge_jax; rocmforge_jax.load_tokenizer(rocmforge_jax.locate.DEMO).encode('a')",
        "from rocmforge_jax.cli import main; assert main(['inspect', 'demo', '--tensors']) == 0",
        "from rocmforge_jax.cli import main; assert main(['tokenize', 'demo', 'text']) == 0",
        "from rocmforge_jax.cli import main; assert main(['--help']) == 0",
        "from rocmforge_jax.cli import main; assert main(['inspect', 'missing.gguf']) == 2",
    ],
)
def test_jax_is_not_imported(program):
    program = f"import sys, rocmforge_jax.locate\n{program}\nassert 'jax' not in sys.modules"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
