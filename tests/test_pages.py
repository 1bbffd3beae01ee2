"""Every Python block of the pages for applications runs, and says what the page shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.desktop.conftest import display  # noqa: F401 — a fixture

ROOT = Path(__file__).resolve().parent.parent
_BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<output>.*?)^```$)?", re.MULTILINE | re.DOTALL)
PAGES = {
    name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("embedding.md", "desktop.md", "freezing.md")
}
BLOCKS = [(name, block) for name, text in PAGES.items() for block in _BLOCK.finditer(text)]


def _heading(part: object) -> str | None:
    if not isinstance(part, re.Match):
        return None
    return str(re.findall(r"^## (.*)", part.string[: part.start()], re.MULTILINE)[-1])


@pytest.mark.parametrize("name", PAGES)
def test_no_block_escapes(name: str) -> None:
    text, blocks = PAGES[name], [block for page, block in BLOCKS if page == name]
    assert len(blocks) == len(re.findall("^```python", text, re.MULTILINE)) > 0
    assert sum(block["output"] is not None for block in blocks) == len(re.findall("^```text", text, re.MULTILINE))


@pytest.mark.parametrize(("name", "block"), BLOCKS, ids=_heading)
def test_block_runs(name: str, block: re.Match[str], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    script = tmp_path / "script.py"
    script.write_text(block["code"], encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ZEPHYR_LOCAL_OFFLINE": "1"}
    if name == "desktop.md":
        environment["DISPLAY"] = request.getfixturevalue("display")
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    if block["output"] is not None:
        assert done.stdout == block["output"]
