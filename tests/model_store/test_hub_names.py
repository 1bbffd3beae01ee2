"""Names of repositories, paths below them and revisions: which are taken, and which are refused."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from tests.model_store.hub_fixtures import HOSTILE_PATHS
from zephyr_local.errors import HubError, InvalidInputError
from zephyr_local.model_store.hub import check_file_path, check_revision, parse_repository


@pytest.mark.parametrize(
    "name", ["TheBloke/zephyr-7B-beta-GGUF", "a/b", "0/1", "_a/b_", "A.b-c/d.e_f", "o/" + "r" * 96]
)
def test_names_of_repositories_are_taken(name):
    assert parse_repository(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "alone",
        "/b",
        "a/",
        "a/b/c",
        "a/../b",
        "../b",
        "a/..",
        "a/b--c",
        "a/b..c",
        "a/.b",
        "a/b.",
        "a/-b",
        "a/b-",
        "a/b.git",
        "a/b c",
        "a/b\n",
        "a/b\0",
        "a\\b",
        "a/bé",
        "a/b?x=1",
        "a/b#c",
        "a/b@main",
        "a/%2e%2e",
        "https://huggingface.co/a/b",
        "o/" + "r" * 97,
    ],
)
def test_other_names_are_refused_with_an_example(name):
    with pytest.raises(InvalidInputError, match="OWNER/REPO"):
        parse_repository(name)


@pytest.mark.parametrize("path", ["a.gguf", "a/b/c.gguf", "Ünïcode/文件.gguf", "a b.gguf", ".gitattributes", "con-1/x"])
def test_paths_below_a_repository_are_taken(path):
    assert check_file_path(path) == PurePosixPath(path)


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_paths_that_lead_elsewhere_or_are_none_are_refused(path):
    with pytest.raises(InvalidInputError) as caught:
        check_file_path(path)
    assert str(caught.value).isprintable()
    with pytest.raises(HubError, match="the hub lists"):
        check_file_path(path, from_hub=True)


@pytest.mark.parametrize("revision", ["main", "refs/pr/1", "v1.0", "a" * 40])
def test_revisions_are_taken(revision):
    assert check_revision(revision) == revision


@pytest.mark.parametrize("revision", ["", "..", "a..b", "a b", "a\nb", "a?b", "a:b", "a" * 300])
def test_what_is_no_revision_is_refused(revision):
    with pytest.raises(InvalidInputError, match="not a revision"):
        check_revision(revision)
