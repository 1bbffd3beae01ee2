"""The user's folders are where the system says, and what is made in them is the owner's alone to read."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from zephyr_local.errors import OutputError
from zephyr_local.user_folders import config_folder, data_folder, make_private_file, make_private_folder, state_folder

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def _usual_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="XDG's variables are Linux's")
def test_the_folders_follow_the_variables_of_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("CONFIG", "DATA", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))
    assert config_folder() == tmp_path / "CONFIG" / "zephyr-local"
    assert data_folder() == tmp_path / "DATA" / "zephyr-local"
    assert state_folder() == tmp_path / "STATE" / "zephyr-local"
    assert list(tmp_path.iterdir()) == [], "asking for a folder makes none"


@posix
def test_each_folder_that_is_made_is_private_and_those_that_exist_are_left(tmp_path: Path):
    tmp_path.chmod(0o755)
    make_private_folder(tmp_path / "a" / "b")
    assert (mode(tmp_path), mode(tmp_path / "a"), mode(tmp_path / "a" / "b")) == (0o755, 0o700, 0o700)
    (tmp_path / "a").chmod(0o755)
    make_private_folder(tmp_path / "a")
    assert mode(tmp_path / "a") == 0o755


def test_a_folder_in_the_way_of_a_file_is_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file is not a folder"):
        make_private_folder(tmp_path / "file")
    with pytest.raises(OutputError, match="cannot be made"):
        make_private_folder(tmp_path / "file" / "below")
    with pytest.raises(OutputError, match="null"):
        make_private_folder(tmp_path / "nu\0l")


def test_without_a_home_no_folder_called_tilde_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="HOME"):
        make_private_folder(Path("~/.config/zephyr-local"))
    assert list(tmp_path.iterdir()) == []


@posix
def test_a_new_file_is_private_whatever_the_umask(tmp_path: Path):
    os.umask(0)
    make_private_file(tmp_path / "folder" / "file")
    assert mode(tmp_path / "folder" / "file") == 0o600
    assert mode(tmp_path / "folder") == 0o700


@posix
def test_an_existing_file_is_closed_to_others_and_keeps_what_it_holds(tmp_path: Path):
    path = tmp_path / "file"
    path.write_text("kept")
    path.chmod(0o644)
    make_private_file(path)
    assert (mode(path), path.read_text()) == (0o600, "kept")
    path.chmod(0o400)
    make_private_file(path)
    assert mode(path) == 0o400, "what is private already is left as it is"


@posix
def test_a_link_goes_on_pointing_where_it_points(tmp_path: Path):
    for target in (tmp_path / "there", tmp_path / "missing" / "file"):
        link = tmp_path / f"link to {target.name}"
        link.symlink_to(target)
        make_private_file(link)
        assert link.is_symlink()
        assert mode(target) == 0o600


@posix
def test_what_is_no_file_is_refused(tmp_path: Path):
    (tmp_path / "folder").mkdir(mode=0o755)
    os.mkfifo(tmp_path / "pipe", 0o644)
    for name in ("folder", "pipe"):
        before = mode(tmp_path / name)
        with pytest.raises(OutputError, match=f"{name} is not a file"):
            make_private_file(tmp_path / name)
        assert mode(tmp_path / name) == before
    with pytest.raises(OutputError, match="cannot be made"):
        make_private_file(tmp_path / "nu\0l")


@posix
def test_the_locks_of_a_file_that_is_in_use_are_kept(tmp_path: Path):
    import fcntl

    path = tmp_path / "file"
    make_private_file(path)
    with path.open("r+b") as used:
        fcntl.lockf(used, fcntl.LOCK_EX | fcntl.LOCK_NB)  # as SQLite locks
        make_private_file(path)
        ask = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        done = subprocess.run([sys.executable, "-c", ask, str(path)], capture_output=True, text=True, timeout=60)
        assert "BlockingIOError" in done.stderr
