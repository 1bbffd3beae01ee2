"""Who does not ask for a model does not wait for the store."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.model_store.library_fixtures import OF_A_USER

pytestmark = OF_A_USER


@pytest.mark.parametrize("use", ["import zephyr_local", "from zephyr_local.cli.main import run; run(['--help'])"])
def test_neither_the_package_nor_help_waits_for_the_store(use):
    program = (
        f"import sys; {use}; print(); "
        "print([name for name in sys.modules if name.startswith(('zephyr_local.model_store', 'zephyr_local.memory', "
        "'zephyr_local.hardware', 'sqlite3', 'tomllib'))])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
