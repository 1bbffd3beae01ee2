"""A checkpoint whose shards come while it is read: the same bytes, and each shard there when it is its turn."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.checkpoint_builder import ModelShape, build_checkpoint, change_json
from zephyr_local.convert.hf_to_gguf import ConvertOptions, OutputRequest, convert_model, dry_run
from zephyr_local.convert.safetensors_file import parse_shard, read_shard
from zephyr_local.errors import CheckpointError, HubError
from zephyr_local.quantize.types import FileType

TYPES = (FileType.Q4_K_M, FileType.Q8_0)


class FolderSupply:
    """Shards that wait in another folder; each call is written down."""

    def __init__(self, waiting: Path, folder: Path) -> None:
        self.calls: list[str] = []
        self.is_reversed = False
        self.fails_at: str | None = None
        self._waiting, self._folder = waiting, folder

    @property
    def names(self) -> frozenset[str]:
        return frozenset(path.name for path in self._waiting.iterdir())

    def size_bytes(self, name: str) -> int:
        return (self._waiting / name).stat().st_size

    def begin(self, name: str, n_bytes: int) -> bytes:
        with (self._waiting / name).open("rb") as stream:
            return stream.read(n_bytes)

    def order(self, names: Sequence[str]) -> Sequence[str]:
        return list(reversed(names)) if self.is_reversed else names

    def prepare(self, name: str) -> None:
        assert list(self._folder.glob("*.safetensors")) == [], "one at a time"
        if Path("/proc/self/maps").exists():  # a mapped file would go on taking its space
            assert f"{self._folder}/" not in Path("/proc/self/maps").read_text()
        if name == self.fails_at:
            raise HubError("it does not come", "Try again later")
        shutil.copyfile(self._waiting / name, self._folder / name)
        self.calls.append(f"prepare {name}")

    def consumed(self, name: str, sha256: str) -> None:
        assert sha256 == hashlib.sha256((self._waiting / name).read_bytes()).hexdigest()
        (self._folder / name).unlink()
        self.calls.append(f"consumed {name}")


def parted(whole: Path, folder: Path) -> FolderSupply:
    """A checkpoint without its shards in ``folder``, and the supply that has them."""
    waiting = folder.with_name("waiting")
    waiting.mkdir(parents=True)
    shutil.copytree(whole, folder)
    for path in folder.glob("*.safetensors"):
        path.rename(waiting / path.name)
    return FolderSupply(waiting, folder)


def convert(source: Path, outputs: Path, supply: FolderSupply | None = None) -> list[bytes]:
    outputs.mkdir(exist_ok=True)
    requests = [OutputRequest(outputs / f"{file_type.name}.gguf", file_type) for file_type in TYPES]
    convert_model(source, requests, ConvertOptions(supply=supply))
    return [request.target.read_bytes() for request in requests]


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return build_checkpoint(tmp_path / "whole" / "model", ModelShape(), n_shards=3)


@pytest.mark.parametrize("n_shards", [1, 3])
def test_the_outputs_are_those_of_the_whole_folder(n_shards: int, tmp_path: Path):
    whole = build_checkpoint(tmp_path / "whole" / "model", n_shards=n_shards)
    supply = parted(whole, tmp_path / "parted" / "model")
    assert convert(tmp_path / "parted" / "model", tmp_path / "out", supply) == convert(whole, tmp_path / "expected")
    names = sorted(supply.names)
    assert supply.calls == [f"{what} {name}" for name in names for what in ("prepare", "consumed")]


def test_the_order_of_the_shards_changes_nothing(whole: Path, tmp_path: Path):
    supply = parted(whole, tmp_path / "parted" / "model")
    supply.is_reversed = True
    assert convert(tmp_path / "parted" / "model", tmp_path / "out", supply) == convert(whole, tmp_path / "expected")
    assert supply.calls[0] == "prepare model-00003-of-00003.safetensors"


def test_shards_without_an_index_are_found_by_their_names(whole: Path, tmp_path: Path):
    (whole / "model.safetensors.index.json").unlink()
    shutil.copyfile(whole / "model-00001-of-00003.safetensors", whole / "consolidated.safetensors")
    supply = parted(whole, tmp_path / "parted" / "model")
    assert convert(tmp_path / "parted" / "model", tmp_path / "out", supply) == convert(whole, tmp_path / "expected")


def test_a_dry_run_needs_no_shard(whole: Path, tmp_path: Path):
    supply = parted(whole, tmp_path / "parted" / "model")
    requests = [OutputRequest(tmp_path / "out.gguf", FileType.Q4_K_M)]
    found = dry_run(tmp_path / "parted" / "model", requests, ConvertOptions(supply=supply))
    assert found.plans[0].size_bytes == dry_run(whole, requests).plans[0].size_bytes
    assert found.hashed == dry_run(whole, requests).hashed == tuple(sorted(supply.names))
    assert supply.calls == []


def test_what_headers_tell_is_refused_before_a_shard_comes(whole: Path, tmp_path: Path):
    change_json(whole / "config.json", intermediate_size=513)
    supply = parted(whole, tmp_path / "parted" / "model")
    with pytest.raises(CheckpointError, match="has shape"):
        convert(tmp_path / "parted" / "model", tmp_path / "out", supply)
    assert supply.calls == []
    assert list((tmp_path / "out").iterdir()) == []


def test_a_shard_that_the_supply_has_not_is_named(whole: Path, tmp_path: Path):
    supply = parted(whole, tmp_path / "parted" / "model")
    (tmp_path / "parted" / "waiting" / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"names model-00002-of-00003\.safetensors, which is not there"):
        convert(tmp_path / "parted" / "model", tmp_path / "out", supply)


def test_a_shard_that_does_not_come_leaves_no_output(whole: Path, tmp_path: Path):
    supply = parted(whole, tmp_path / "parted" / "model")
    supply.fails_at = "model-00002-of-00003.safetensors"
    with pytest.raises(HubError, match="it does not come"):
        convert(tmp_path / "parted" / "model", tmp_path / "out", supply)
    assert list((tmp_path / "out").iterdir()) == []
    assert supply.calls == [f"{what} model-00001-of-00003.safetensors" for what in ("prepare", "consumed")]


def test_a_shard_is_parsed_from_its_first_bytes_as_from_the_file(whole: Path):
    path = whole / "model-00002-of-00003.safetensors"
    data = path.read_bytes()
    asked: list[int] = []

    def begin(n_bytes: int) -> bytes:
        asked.append(n_bytes)
        return data[:n_bytes]

    shard = read_shard(path)
    assert parse_shard(path, len(data), begin) == shard
    assert asked == [8, shard.data_begin], "no more than the header"
    with pytest.raises(CheckpointError, match="bytes after its last tensor"):
        parse_shard(path, len(data) + 1, begin)
