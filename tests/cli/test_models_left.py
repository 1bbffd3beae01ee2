"""What running and killed commands leave in the store, as `models list` and `prune` tell it; and what `rm` asks."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.cli.pulling import BETA, model, store_folder
from tests.model_store.store_fixtures import put, put_in_store
from zephyr_local.model_store.file_lock import file_lock
from zephyr_local.quantize.leftovers import MARK, lock_written


def test_what_a_process_downloads_now_is_said_to_be(cli: Cli, home: Path) -> None:
    partial = put(store_folder(home) / ".partial" / ("ab" * 32), bytes(2000))
    with file_lock(partial.with_name(f"{partial.name}.lock"), "it"):
        assert cli("models", "list").err.endswith(f"2 kB of {partial.name}; a process downloads it now\n")
        assert cli("models", "list", "--json").json["partial_downloads"][0]["is_downloading"] is True
    put(partial.with_name(f"{partial.name}.lock"), b"123")  # a killed one's
    for _ in range(2):
        assert "; the same pull goes on, zephyr-local models prune removes it" in cli("models", "list").err
    assert cli("models", "list", "--json").json["partial_downloads"][0]["is_downloading"] is False


def test_what_a_killed_conversion_wrote_is_told_and_removed(cli: Cli, home: Path) -> None:
    folder = store_folder(home) / "org/zephyr"
    begun = put(folder / f"zephyr-Q8_0.gguf.{'a' * 16}.part", b"GGUF" + MARK + bytes(2000))
    empty = put(folder / f"zephyr-Q4_0.gguf.{'b' * 16}.part", b"")
    other = put(folder / "notes.part", b"mine")
    written = f"not finished: 2 kB of {folder / 'zephyr-Q8_0.gguf'}; "
    assert f"{written}zephyr-local models prune removes it" in cli("models", "list").err
    assert [one["path"] for one in cli("models", "list", "--json").json["unfinished"]] == [str(empty), str(begun)]
    with begun.open("rb") as stream:
        assert lock_written(begun, stream.fileno())
        assert f"{written}a process writes it now" in cli("models", "list").err
        assert f"{begun} stays: a process writes it now" in cli("models", "prune", "--dry-run", code=1).err
        ran = cli("models", "prune", code=1)
        assert (ran.out.count("Removed "), begun.exists(), empty.exists()) == (1, True, False)
    assert cli("models", "prune", "--dry-run").out == (
        f"Would remove 2 kB of {folder / 'zephyr-Q8_0.gguf'}, which was not finished\n"
    )
    assert cli("models", "prune", "--json").json["unfinished"] == [str(begun)]
    assert list(folder.iterdir()) == [other]


def test_another_file_of_such_a_name_is_not_removed(cli: Cli, home: Path) -> None:
    mine = put(store_folder(home) / f"org/zephyr/zephyr.gguf.{'a' * 16}.part", b"mine")
    assert "or it is not ours" in cli("models", "prune", code=1).err
    assert mine.read_bytes() == b"mine"


class _Typed(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_rm_asks_and_tells_of_the_alias(cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put_in_store(store_folder(home), model(1), BETA, "zephyr-7b-beta.Q4_0.gguf")
    cli("models", "alias", "work", "zephyr-7b-beta:q4_0")
    monkeypatch.setattr(sys, "stdin", _Typed("n\n\ny\n"))
    ran = cli("models", "rm", "work", code=130)
    told = "work is an alias of it; zephyr-local models alias --remove work removes the alias alone.\n"
    assert ran.err.startswith(f"{told}Remove {path} (")
    assert "alias" not in cli("models", "rm", "zephyr-7b-beta", code=130).err
    assert path.read_bytes() == model(1)
    cli("models", "rm", "work")
    assert not path.exists()
    path = put_in_store(store_folder(home), model(1), BETA, "zephyr-7b-beta.Q4_0.gguf")
    assert "(" not in cli("models", "rm", "work", "--yes").err
    assert not path.exists()
