"""What a child process is given."""

from __future__ import annotations

import pytest

from zephyr_local import child_process


def test_threads_that_wait_spin_briefly_unless_the_user_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    def spin_count() -> str | None:
        return child_process._environment("engine").get("GOMP_SPINCOUNT")

    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert spin_count() == "1000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert spin_count() == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert spin_count() is None
