"""What a child process is given."""

from __future__ import annotations

import sys

import pytest

from zephyr_local import child_process


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's tunables are Linux's")
def test_a_child_asks_for_huge_pages_unless_the_user_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    def tunables() -> str:
        return child_process._environment("engine")["GLIBC_TUNABLES"]

    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert tunables() == "glibc.malloc.hugetlb=1"
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.tcache_count=3")
    assert tunables() == "glibc.malloc.tcache_count=3:glibc.malloc.hugetlb=1"
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    assert tunables() == "glibc.malloc.hugetlb=0"
