"""The base that an adapter names is found on this computer, or every place that was looked at is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from zephyr_local.convert.hub_cache import find_base
from zephyr_local.errors import CheckpointError

COMMIT, OTHER_COMMIT = "0123456789abcdef" * 2 + "01234567", "f" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with one repository of two snapshots, and an environment that names no cache."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")

    def build(folder: Path) -> Path:
        repository = folder / "models--org--base"
        for commit in (COMMIT, OTHER_COMMIT):
            (repository / "snapshots" / commit).mkdir(parents=True)
        for name, commit in {"main": COMMIT, "v2": OTHER_COMMIT, "pr/1": OTHER_COMMIT, "gone": "0" * 40}.items():
            (repository / "refs" / name).parent.mkdir(parents=True, exist_ok=True)
            (repository / "refs" / name).write_text(commit)
        return repository / "snapshots"

    return build


@pytest.mark.parametrize(
    ("variable", "value", "place"),
    [
        ("HF_HUB_CACHE", "hub", "hub"),
        ("HUGGINGFACE_HUB_CACHE", "hub", "hub"),
        ("HF_HOME", "hf", "hf/hub"),
        ("XDG_CACHE_HOME", "xdg", "xdg/huggingface/hub"),
        ("HF_HUB_CACHE", "", "home/.cache/huggingface/hub"),
        ("HF_HUB_CACHE", "~/here", "home/here"),
    ],
)
def test_base_is_found_in_the_cache(tmp_path, monkeypatch, cache, variable, value, place):
    snapshots = cache(tmp_path / place)
    monkeypatch.setenv(variable, value if not value or value.startswith("~") else str(tmp_path / value))
    assert find_base("org/base", None, tmp_path) == snapshots / COMMIT
    assert find_base("org/base", "main", tmp_path) == snapshots / COMMIT
    assert find_base("org/base", "v2", tmp_path) == snapshots / OTHER_COMMIT
    assert find_base("org/base", "pr/1", tmp_path) == snapshots / OTHER_COMMIT
    assert find_base("org/base", OTHER_COMMIT, tmp_path) == snapshots / OTHER_COMMIT


def test_cache_is_where_huggingface_hub_puts_it(tmp_path, monkeypatch, cache):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    cache(tmp_path / "hub")
    from huggingface_hub import try_to_load_from_cache

    found = find_base("org/base", "v2", tmp_path)
    (found / "config.json").write_text("{}")
    assert try_to_load_from_cache("org/base", "config.json", cache_dir=tmp_path / "hub", revision="v2") == str(
        found / "config.json"
    )


def test_base_as_a_folder_comes_first(tmp_path, monkeypatch, cache):
    cache(tmp_path / "home/.cache/huggingface/hub")
    (tmp_path / "empty/org/base").mkdir(parents=True)
    assert find_base("org/base", None, tmp_path) == Path("org/base")
    assert find_base(str(tmp_path / "empty"), "anything", tmp_path) == tmp_path / "empty"


@pytest.mark.parametrize(
    ("name", "revision"),
    [
        ("org/other", None),
        ("org/base", "v3"),
        ("org/base", "gone"),
        ("org/base", "1" * 40),
        ("org/base", "../refs/main"),
        ("org/base", "/etc/hostname"),
        ("org/base", "pr"),
        ("../empty/nothing", None),
        ("/root/of/another/computer", None),
        ("", None),
        ("a\0b", None),
        ("x" * 10_000, None),
        ("~nobody-of-this-name/base", None),
    ],
)
def test_base_that_is_not_there(tmp_path, cache, name, revision):
    cache(tmp_path / "home/.cache/huggingface/hub")
    with pytest.raises(CheckpointError, match="looked for") as missing:
        find_base(name, revision, tmp_path / "adapter")
    assert "--base" in missing.value.remedy
    assert str(tmp_path / "adapter") in missing.value.problem


def test_places_that_were_looked_at_are_named(tmp_path, cache):
    with pytest.raises(CheckpointError) as missing:
        find_base("org/base", None, tmp_path / "adapter")
    for place in (tmp_path / "empty/org/base", tmp_path / "home/.cache/huggingface/hub/models--org--base/refs/main"):
        assert str(place) in missing.value.problem


def test_damaged_reference(tmp_path, cache):
    snapshots = cache(tmp_path / "home/.cache/huggingface/hub")
    (snapshots.parent / "refs/main").write_bytes(b"\xff\xfe../../../")
    with pytest.raises(CheckpointError, match="refs/main"):
        find_base("org/base", None, tmp_path)
