"""What the README says of the tree is true, and nothing in the pages was left to be filled in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "zephyr_local" / "data").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_nothing_is_left_to_be_filled_in(page: Path):
    assert re.findall(r"@[A-Z]+@|\bTODO\b|\bTBD\b|^MEASURED$", page.read_text(encoding="utf-8"), re.MULTILINE) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "THIRD_PARTY.md"], ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page: Path):
    named = re.findall(
        r"`((?:benchmarks|convert|docs|examples|quantize|tests|train|zephyr_local)/[\w/.-]+)`", page.read_text("utf-8")
    )
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_map_of_the_tree_is_true():
    tree = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Map of the tree")[2].split("```")[1]
    folder = ROOT
    named = set()
    for line in tree.strip().splitlines():
        name = line.split()[0]
        path = (folder if line.startswith(" ") else ROOT) / name
        assert path.exists(), line
        if not line.startswith(" "):
            folder = path
            named.add(name.rstrip("/"))
        elif path.suffix == ".py":
            named.add(path.name)
    modules = {path.name for path in (ROOT / "zephyr_local").glob("*.py")} - {"__main__.py"}
    assert modules <= named, "a module of zephyr_local/ is missing from the map"


def test_the_two_commands_are_there():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = re.findall(r"(?:`|^)make ([a-z-]+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"chat", "test"} <= set(named)
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
