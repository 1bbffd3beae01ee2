"""The desktop examples have sound types: what an application's author sees in mypy --strict and in pyright."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "examples" / "desktop"
WINDOW = FOLDER / "qt_chat"
SMALL = sorted(FOLDER.glob("*.py"))
RUN_BY = {
    "clipboard_summary.py": "test_small_examples.py",
    "console_chat.py": "test_frozen.py",
    "qasync_chat.py": "test_small_examples.py",
    "qt_chat": "test_qt_chat_app.py",
    "tk_chat.py": "test_small_examples.py",
}


def test_every_example_is_run():
    names = {path.name for path in FOLDER.iterdir() if path.suffix == ".py" or (path / "__main__.py").exists()}
    assert names == set(RUN_BY)
    for name, test in RUN_BY.items():
        assert Path(name).stem in (Path(__file__).parent / test).read_text(encoding="utf-8"), (name, test)


@pytest.mark.parametrize("files", [SMALL, sorted(WINDOW.glob("*.py"))], ids=["small", "qt_chat"])
def test_mypy(files: list[Path], tmp_path: Path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}"),
            "--follow-imports=silent",  # make check looks at the package itself
            *files,
        ],
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": f"{ROOT}:{WINDOW}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_pyright(tmp_path: Path):
    settings = {
        "include": [str(FOLDER)],
        "extraPaths": [str(ROOT), str(WINDOW)],
        "typeCheckingMode": "strict",
        "pythonVersion": "3.11",
        # Names that a library gives no types for (qasync, Qt's generated enums) are not this example's doing.
        "reportMissingTypeStubs": False,
        "reportUnknownMemberType": False,
        "reportUnknownVariableType": False,
        "reportUnknownArgumentType": False,
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--project", tmp_path / "pyrightconfig.json", "--pythonpath", sys.executable],
        cwd=tmp_path,
        env=os.environ | {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 errors" in done.stdout
