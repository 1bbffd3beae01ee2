"""Every Python block of docs/embedding.md runs, and says what the page shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
_BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<output>.*?)^```$)?", re.MULTILINE | re.DOTALL)
PAGE = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")
BLOCKS = list(_BLOCK.finditer(PAGE))


def _heading(block: re.Match[str]) -> str:
    return re.findall(r"^## (.*)", PAGE[: block.start()], re.MULTILINE)[-1]


def test_no_block_escapes() -> None:
    assert len(BLOCKS) == len(re.findall("^```python", PAGE, re.MULTILINE)) > 10
    assert sum(block["output"] is not None for block in BLOCKS) == len(re.findall("^```text", PAGE, re.MULTILINE))


@pytest.mark.parametrize("block", BLOCKS, ids=_heading)
def test_block_runs(block: re.Match[str], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(block["code"], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
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
