"""What a repository offers, what of it is here, and files that come and are remembered."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.gguf_builder import tiny_model
from tests.stand_in_hub import StandInHub, sha256
from zephyr_local.errors import HubError, InvalidInputError, ModelNotFoundError
from zephyr_local.model_store.hub import HubFile, HubSnapshot, read_snapshot
from zephyr_local.model_store.names import HubName
from zephyr_local.model_store.places import FoundModel
from zephyr_local.model_store.pull import (
    PARTIAL_FOLDER,
    Offer,
    PullProgress,
    bytes_held,
    chosen_offers,
    here_already,
    known_files,
    missing_bytes,
    offers,
    pull_offer,
    require_one_model,
    targets,
)
from zephyr_local.model_store.registry import FileRecord, Registry, recorded

REPOSITORY = "org/zephyr-GGUF"
COMMIT = "0123456789" * 4


def hub_file(path: str, size_bytes: int = 100) -> HubFile:
    return HubFile(path, size_bytes, sha256(path.encode()), None)


def snapshot(*paths: str) -> HubSnapshot:
    """Files that are the larger the later they come."""
    files = tuple(hub_file(path, 100 + i) for i, path in enumerate(paths))
    return HubSnapshot(REPOSITORY, "main", COMMIT, files, "mit", False)


def of_path(found: HubSnapshot, path: str) -> Offer:
    (offer,) = (offer for offer in offers(found) if offer.files[0].path == path)
    return offer


# --- offers ---


def test_each_gguf_is_an_offer_with_the_type_of_its_name() -> None:
    found = offers(snapshot("a/zephyr.Q4_K_M.gguf", "zephyr-UD-Q2_K_XL.GGUF", "zephyr.gguf", "README.md", "x.bin"))
    assert [(offer.stem, offer.file_type, offer.label) for offer in found] == [
        ("zephyr.Q4_K_M", "Q4_K_M", "Q4_K_M"),
        ("zephyr-UD-Q2_K_XL", "Q2_K_XL", "Q2_K_XL"),
        ("zephyr", None, "zephyr"),
    ]


def test_parts_are_one_offer_where_all_are_there() -> None:
    parts = [f"q8/zephyr.Q8_0-{no:05d}-of-00003.gguf" for no in (3, 1, 2)]
    alone = "zephyr.Q4_0-00001-of-00002.gguf"
    elsewhere = ["a/zephyr.Q5_0-00001-of-00002.gguf", "b/zephyr.Q5_0-00002-of-00002.gguf"]
    (offer,) = offers(snapshot(*parts, alone, *elsewhere, "zephyr.Q6_K-00000-of-00001.gguf"))
    assert [file.path for file in offer.files] == sorted(parts)
    assert (offer.stem, offer.file_type, offer.size_bytes) == ("zephyr.Q8_0", "Q8_0", 303)


@pytest.mark.parametrize(
    "name", ["mmproj-zephyr-F16", "zephyr.imatrix", "zephyr-lora-F16", "adapter.F16", "lora", "zephyr_adapter"]
)
def test_what_lies_beside_a_model_is_no_offer(name: str) -> None:
    assert offers(snapshot(f"{name}.gguf")) == ()


@pytest.mark.parametrize("name", ["zephyr-qlora.Q4_0", "explorations.Q8_0", "adapters.Q4_0"])
def test_a_model_whose_name_only_resembles_that_is_one(name: str) -> None:
    assert [offer.stem for offer in offers(snapshot(f"{name}.gguf"))] == [name]


def test_a_name_leaves_open_what_it_does_not_say() -> None:
    found = snapshot("zephyr.Q4_0.gguf", "zephyr.Q8_0.gguf", "other/zephyr.Q8_0.gguf", "zephyr-lora.gguf", "a.md")

    def chosen(**of: Any) -> list[str]:
        return [offer.files[0].path for offer in chosen_offers(found, HubName(REPOSITORY, **of))]

    assert chosen() == ["zephyr.Q4_0.gguf", "zephyr.Q8_0.gguf", "other/zephyr.Q8_0.gguf"]
    assert chosen(file_type="Q4_0") == chosen(file="zephyr.Q4_0") == ["zephyr.Q4_0.gguf"]
    assert chosen(file="other/zephyr.Q8_0.gguf") == ["other/zephyr.Q8_0.gguf"]
    assert chosen(file_type="Q8_0") == ["zephyr.Q8_0.gguf", "other/zephyr.Q8_0.gguf"]
    assert chosen(file="zephyr-lora.gguf") == ["zephyr-lora.gguf"]
    with pytest.raises(InvalidInputError, match="is not a GGUF"):
        chosen(file="a.md")
    for of in ({"file_type": "Q2_K"}, {"file": "Zephyr.Q4_0.gguf"}, {"file": "zephyr"}):
        with pytest.raises(ModelNotFoundError, match="It has: Q4_0, Q8_0"):
            chosen(**of)


def test_a_repository_of_a_checkpoint_says_how_to_make_a_gguf() -> None:
    found = snapshot("model.safetensors", "config.json")
    with pytest.raises(ModelNotFoundError, match=f"zephyr-local pull {REPOSITORY} --quantize q4_k_m"):
        chosen_offers(found, HubName(REPOSITORY))


def test_only_one_model_can_be_chosen_from() -> None:
    same = snapshot("Zephyr-7B.Q4_0.gguf", "zephyr_7b-Q8_0.gguf")
    require_one_model(offers(same), same)
    two = snapshot("zephyr.Q4_0.gguf", "breeze.Q4_0.gguf")
    with pytest.raises(InvalidInputError, match="several models: breeze, zephyr"):
        require_one_model(offers(two), two)


# --- what is here ---


def test_files_go_below_owner_and_repository(tmp_path: Path) -> None:
    found = snapshot("a/b/zephyr.gguf")
    assert targets(tmp_path, found, offers(found)[0]) == (tmp_path / "org" / "zephyr-GGUF" / "a" / "b" / "zephyr.gguf",)


def found_model(path: Path, sha256: str | None, size_bytes: int) -> FoundModel:
    return FoundModel(path, "ollama", path.stem, None, None, sha256, size_bytes, (path,))


def record_of(path: Path, file: HubFile, source: str = "hub") -> FileRecord:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(file.size_bytes))
    assert file.sha256 is not None
    return FileRecord(
        *(path, file.size_bytes, path.stat().st_mtime_ns, file.sha256, source), *(None, None, None, 0.0, "")
    )


def test_a_file_is_here_by_digest_and_size(tmp_path: Path) -> None:
    offer = of_path(snapshot("zephyr.Q4_0.gguf"), "zephyr.Q4_0.gguf")
    (file,) = offer.files
    blob = tmp_path / "sha256-x"
    assert here_already(offer, known_files([found_model(blob, file.sha256, file.size_bytes)], [])) == (blob,)
    assert here_already(offer, known_files([found_model(blob, file.sha256, file.size_bytes - 1)], [])) is None
    assert here_already(offer, known_files([found_model(blob, sha256(b"other"), file.size_bytes)], [])) is None
    assert here_already(offer, known_files([found_model(blob, None, file.size_bytes)], [])) is None


def test_a_record_counts_while_its_file_is_as_it_was(tmp_path: Path) -> None:
    offer = of_path(snapshot("zephyr.Q4_0.gguf"), "zephyr.Q4_0.gguf")
    record = record_of(tmp_path / "mine.gguf", offer.files[0], "verify")
    assert here_already(offer, known_files([], [record])) == (record.path,)
    os.utime(record.path, ns=(1, 1))
    assert here_already(offer, known_files([], [record])) is None


def test_parts_are_here_where_a_chat_finds_them(tmp_path: Path) -> None:
    names = [f"zephyr.Q8_0-{no:05d}-of-00002.gguf" for no in (1, 2)]
    (offer,) = offers(snapshot(*names))
    one, two = offer.files
    side_by_side = [record_of(tmp_path / "a" / names[0], one), record_of(tmp_path / "a" / names[1], two)]
    assert here_already(offer, known_files([], side_by_side)) == tuple(record.path for record in side_by_side)
    assert here_already(offer, known_files([], side_by_side[:1])) is None
    apart = [side_by_side[0], record_of(tmp_path / "b" / names[1], two)]
    assert here_already(offer, known_files([], apart)) is None
    renamed = [side_by_side[0], record_of(tmp_path / "a" / "two.gguf", two)]
    assert here_already(offer, known_files([], renamed)) is None


def test_what_is_still_to_come_is_counted_file_by_file(tmp_path: Path) -> None:
    names = [f"zephyr.Q8_0-{no:05d}-of-00003.gguf" for no in (1, 2, 3)]
    found = snapshot(*names)
    (offer,) = offers(found)
    assert missing_bytes(tmp_path, found, offer) == offer.size_bytes == 303
    first = targets(tmp_path, found, offer)[0]
    first.parent.mkdir(parents=True)
    first.write_bytes(bytes(100))
    partial = tmp_path / PARTIAL_FOLDER / offer.files[1].digest
    partial.parent.mkdir()
    partial.write_bytes(bytes(41))
    assert missing_bytes(tmp_path, found, offer) == 60 + 102
    first.write_bytes(bytes(99))  # it is another file
    assert missing_bytes(tmp_path, found, offer) == 100 + 60 + 102


def test_a_store_holds_its_files_and_not_what_links_lead_to(tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert bytes_held(store) == 0
    (store / "a" / "b").mkdir(parents=True)
    (store / "a" / "b" / "x.gguf").write_bytes(bytes(70))
    (store / ".partial").mkdir()
    (store / ".partial" / "y").write_bytes(bytes(7))
    (tmp_path / "elsewhere.gguf").write_bytes(bytes(1000))
    (store / "link.gguf").symlink_to(tmp_path / "elsewhere.gguf")
    (store / "loop").symlink_to(store)
    (store / "gone").symlink_to(store / "nowhere")
    assert bytes_held(store) == 77


# --- pulled ---


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch, hub: StandInHub) -> StandInHub:
    hub.connect(monkeypatch, home)
    return hub


def test_all_parts_come_and_each_is_remembered(hub: StandInHub, tmp_path: Path) -> None:
    data = {f"z.Q8_0-{no:05d}-of-00003.gguf": tiny_model(seed=no).build() for no in (1, 2, 3)}
    commit = hub.add(REPOSITORY, data, licence="apache-2.0")
    found = read_snapshot(REPOSITORY)
    (offer,) = offers(found)
    told: list[PullProgress] = []
    pulled = pull_offer(found, offer, tmp_path / "store", command="the command", on_progress=told.append)
    assert [path.read_bytes() for path in pulled.paths] == list(data.values())
    assert (pulled.fetched_bytes, pulled.resumed_bytes) == (offer.size_bytes, 0)
    assert (pulled.was_here, pulled.notices) == (False, ())
    done = [progress.done_bytes for progress in told]
    assert done == sorted(done)
    assert {progress.total_bytes for progress in told} == {offer.size_bytes}
    assert (done[-1], told[-1].file) == (offer.size_bytes, "z.Q8_0-00003-of-00003.gguf")
    for path, content in zip(pulled.paths, data.values(), strict=True):
        record = recorded(path)
        assert record is not None
        assert (record.sha256, record.source, record.licence) == (sha256(content), "hub", "apache-2.0")
        assert (record.repository, record.revision, record.command) == (REPOSITORY, commit, "the command")


def test_a_part_that_fails_leaves_those_before_it_for_the_next_time(hub: StandInHub, tmp_path: Path) -> None:
    names = [f"z.Q8_0-{no:05d}-of-00002.gguf" for no in (1, 2)]
    data = {name: tiny_model(seed=no).build() for no, name in enumerate(names)}
    hub.add(REPOSITORY, data)
    found = read_snapshot(REPOSITORY)
    (offer,) = offers(found)
    kept = hub.repositories[REPOSITORY].commits[found.commit].pop(names[1])
    with pytest.raises(ModelNotFoundError, match="has no file"):
        pull_offer(found, offer, tmp_path, command="")
    assert [path.exists() for path in targets(tmp_path, found, offer)] == [True, False]
    assert missing_bytes(tmp_path, found, offer) == len(data[names[1]])
    hub.repositories[REPOSITORY].commits[found.commit][names[1]] = kept
    pulled = pull_offer(found, offer, tmp_path, command="")
    assert pulled.fetched_bytes == len(data[names[1]])
    again = pull_offer(found, offer, tmp_path, command="")
    assert (again.was_here, again.fetched_bytes) == (True, 0)


def test_what_had_come_whole_before_a_kill_was_not_here(hub: StandInHub, tmp_path: Path) -> None:
    data = tiny_model().build()
    hub.add(REPOSITORY, {"z.Q8_0.gguf": data})
    found = read_snapshot(REPOSITORY)
    partial = tmp_path / PARTIAL_FOLDER / sha256(data)
    partial.parent.mkdir()
    partial.write_bytes(data)
    pulled = pull_offer(found, offers(found)[0], tmp_path, command="")
    assert (pulled.fetched_bytes, pulled.resumed_bytes, pulled.was_here) == (0, len(data), False)
    assert pulled.paths[0].read_bytes() == data


def test_a_registry_that_cannot_be_written_is_a_notice(hub: StandInHub, home: Path, tmp_path: Path) -> None:
    data = tiny_model().build()
    hub.add(REPOSITORY, {"z.Q8_0.gguf": data})
    found = read_snapshot(REPOSITORY)
    with Registry() as registry:
        registry.path.write_bytes(b"no database" * 500)
    pulled = pull_offer(found, offers(found)[0], tmp_path, command="")
    assert pulled.paths[0].read_bytes() == data
    (notice,) = pulled.notices
    assert notice.startswith("where z.Q8_0.gguf is from is not remembered: ")


def test_small_files_that_lie_in_git_are_checked_by_its_digest(hub: StandInHub, tmp_path: Path) -> None:
    hub.add(REPOSITORY, {"tiny.gguf": b"GGUF" * 9})
    found = read_snapshot(REPOSITORY)
    (offer,) = offers(found)
    assert offer.files[0].sha256 is None
    assert (
        here_already(offer, known_files([found_model(tmp_path, None, 36), found_model(tmp_path, "", 36)], [])) is None
    )
    assert pull_offer(found, offer, tmp_path, command="").paths[0].read_bytes() == b"GGUF" * 9
    hub.add(REPOSITORY, {"tiny.gguf": b"FUGG" * 9})
    moved = read_snapshot(REPOSITORY)
    hub.repositories[REPOSITORY].commits[moved.commit]["tiny.gguf"] = b"XXXX" * 9
    with pytest.raises(HubError):
        pull_offer(moved, offers(moved)[0], tmp_path, command="")
    assert targets(tmp_path, found, offer)[0].read_bytes() == b"GGUF" * 9
