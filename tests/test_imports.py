"""Imports run one way only, and what need not compute does not import jax."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rocmforge_jax

pytestmark = pytest.mark.core

ROOT = Path(__file__).resolve().parents[1]
#: Part of rocmforge_jax -> the parts it may import besides itself. A part is the first name below
#: the package.
MAY_IMPORT = {
    "formats": set(),
    "locate": set(),
    "settings": set(),
    "cpp": set(),
    "ahead": {"gguf", "quant"},
    "gguf": {"formats"},
    "text": {"gguf"},
    "quant": {"cpp", "formats", "locate", "settings"},
    "nn": {"cpp", "quant"},
    "models": {"formats", "gguf", "quant", "nn", "ahead"},
    "generate": {"models", "nn", "quant"},
    "language_model": {"generate", "models", "gguf", "text", "locate"},
    "cli": {
        "language_model",
        "generate",
        "models",
        "nn",
        "quant",
        "text",
        "gguf",
        "formats",
        "locate",
        "settings",
        "ahead",
    },
    "__main__": {"cli"},
}
MAY_IMPORT["demo"] = set(MAY_IMPORT)  # a leaf on top: nobody imports it
#: The parts that may use the kernels.
USE_KERNELS = {"cpp", "quant", "nn"}
TRITON = "jax.experimental.pallas.triton"


def modules(package):
    return sorted((ROOT / package).rglob("*.py"))


def imports(path):
    """The full names that a file imports, wherever in it; `from a import b` counts as a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(name):
    """rocmforge_jax.nn.cache -> nn.

    A public name of the package itself -> the part that defines it.
    """
    first = name.split(".")[1]
    return first if first in MAY_IMPORT else getattr(rocmforge_jax, first).__module__.split(".")[1]


def owner(path):
    return path.relative_to(ROOT / "rocmforge_jax").parts[0].removesuffix(".py")


@pytest.mark.parametrize(
    "path", modules("rocmforge_jax"), ids=lambda path: str(path.relative_to(ROOT))
)
def test_no_import_points_up(path):
    part_of_file = owner(path)
    for name in imports(path):
        if name.split(".")[0] == "pallas_kernels":
            assert part_of_file in USE_KERNELS, f"{part_of_file} imports {name}"
        if name.split(".")[0] != "rocmforge_jax" or name == "rocmforge_jax":
            continue
        imported = part(name)
        assert imported == part_of_file or imported in MAY_IMPORT[part_of_file], (
            f"{part_of_file} imports {name}"
        )


def test_the_parts_are_those_of_the_package():
    parts = {owner(path) for path in modules("rocmforge_jax")} - {"__init__"}
    assert parts == set(MAY_IMPORT)


def test_the_order_has_no_circle():
    done = set()
    while len(done) < len(MAY_IMPORT):
        ready = {name for name, below in MAY_IMPORT.items() if below - {name} <= done} - done
        assert ready, f"a circle among {set(MAY_IMPORT) - done}"
        done |= ready


def test_kernels_never_import_the_package():
    names = [name for path in modules("pallas_kernels") for name in imports(path)]
    assert not [name for name in names if name.split(".")[0] == "rocmforge_jax"]


def test_one_file_imports_the_triton_backend():
    paths = [path for package in ("rocmforge_jax", "pallas_kernels") for path in modules(package)]
    found = {
        path.relative_to(ROOT)
        for path in paths
        if any(name.startswith(TRITON) for name in imports(path))
    }
    assert found <= {Path("pallas_kernels/triton.py")}


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
