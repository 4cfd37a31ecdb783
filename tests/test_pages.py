"""Links of the pages lead somewhere, and no file names a place of one machine."""

import re
import subprocess
from pathlib import Path

import pytest

from tools import api_pages

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.core
def test_links_of_the_pages_lead_somewhere():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    links = [
        (page, link) for page in pages for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    ]
    assert (
        links
        and [f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()]
        == []
    )


@pytest.mark.core
def test_the_pages_of_the_api_list_every_public_name():
    folder = ROOT / "docs" / "api"
    there = {file.name: file.read_text() for file in folder.iterdir()}
    assert there == api_pages.pages(), "run: python -m tools.api_pages docs/api"


@pytest.mark.core
def test_every_page_is_in_the_menu_of_the_site():
    menu = (ROOT / "mkdocs.yml").read_text()
    pages = (page.relative_to(ROOT / "docs") for page in (ROOT / "docs").rglob("*.md"))
    assert [str(page) for page in pages if page.as_posix() not in menu] == []


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
