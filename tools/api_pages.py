"""Makes the pages of docs/api from the public names, one page for each public package.

`python -m tools.api_pages docs/api` updates them; a test fails if they are out of date. The site's
build fills them with the docstrings.
"""

import importlib
import inspect
import sys
from pathlib import Path

PACKAGES = (
    "",
    "gguf",
    "formats",
    "text",
    "quant",
    "nn",
    "models",
    "generate",
    "adapters",
    "explore",
    "export",
)


def pages() -> dict[str, str]:
    """Returns file name -> text for all pages."""
    return {f"{package or 'rocmforge_jax'}.md": _page(package) for package in PACKAGES}


def _page(package: str) -> str:
    name = ".".join(filter(None, ("rocmforge_jax", package)))
    module = importlib.import_module(name)
    first, *more = (inspect.getdoc(module) or "").split("\n\n")
    names = sorted(
        (each for each in module.__all__ if not inspect.ismodule(getattr(module, each))),
        key=str.lower,
    )
    entries = [f"::: {name}.{each}" for each in names]
    return "\n\n".join([f"# `{name}`", first, *more, *entries]) + "\n"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in pages().items():
        (folder / file).write_text(text)
