"""A model is talked with by name where another tool keeps it: nothing is copied, and nothing of that tool changes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import ROOT, zephyr_local
from tests.gguf_builder import model_of_file, split_model, write_parts, write_reciting_model
from tests.model_store import store_fixtures as stores
from zephyr_local.api import Zephyr

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the folders are those of Linux")

_OWN = (".config/zephyr-local", ".local/share/zephyr-local", ".local/state/zephyr-local")


@dataclass(frozen=True)
class Store:
    """Whose it is, how a model comes there, and what it is called then."""

    owner: str
    put: Callable[[Path, Path], object]
    """Takes the user's home and a model."""
    names: tuple[str, ...]

    @property
    def sentence(self) -> str:
        return f"I am the model of {self.owner}, and I stay there."


def _put_parts(home: Path, model: Path) -> None:
    """In the Hugging Face cache, each part a link to a blob of its own."""
    parts = write_parts(split_model(model_of_file(model), 3), model.parent, "parts")
    for part in parts:
        stores.put_in_hub_cache(home / ".cache/huggingface/hub", part.read_bytes(), "org/parts-GGUF", part.name)


STORES = [
    Store(
        "zephyr-local",
        lambda home, model: stores.put_in_store(
            home / ".local/share/zephyr-local/models", model.read_bytes(), "org/own-GGUF", "own.Q4_K_M.gguf"
        ),
        ("own.Q4_K_M", "OWN-q4-k-m", "hf:org/own-GGUF"),
    ),
    Store(
        "Hugging Face with links",
        lambda home, model: stores.put_in_hub_cache(
            home / ".cache/huggingface/hub", model.read_bytes(), "org/linked-GGUF", "linked.Q4_K_M.gguf"
        ),
        ("linked.Q4_K_M", "org/linked-GGUF", "hf:org/linked-GGUF/linked.Q4_K_M.gguf", "hf:org/linked-GGUF:q4_k_m"),
    ),
    Store(
        "Hugging Face without links",
        lambda home, model: stores.put_in_hub_cache(
            home / ".cache/huggingface/hub", model.read_bytes(), "org/plain-GGUF", "plain.gguf", links=False
        ),
        ("plain", f"hf:org/plain-GGUF@{stores.COMMIT}"),
    ),
    Store("Hugging Face in parts", _put_parts, ("parts", "org/parts-GGUF")),
    Store(
        "LM Studio",
        lambda home, model: stores.put_in_lm_studio(
            home / ".lmstudio/models", model.read_bytes(), "org/studio-GGUF", "studio.Q8_0.gguf"
        ),
        ("studio.Q8_0", "org/studio-GGUF"),
    ),
    Store(
        "older LM Studio",
        lambda home, model: stores.put_in_lm_studio(
            home / ".cache/lm-studio/models", model.read_bytes(), "org/older-GGUF", "older.gguf"
        ),
        ("older",),
    ),
    Store(
        "GPT4All",
        lambda home, model: stores.put_in_gpt4all(
            home / ".local/share/nomic.ai/GPT4All", model.read_bytes(), "for-all.Q4_0.gguf"
        ),
        ("for-all.Q4_0",),
    ),
    Store(
        "Ollama",
        lambda home, model: stores.put_in_ollama(home / ".ollama/models", model.read_bytes(), "llamas", "7b"),
        ("llamas:7b",),
    ),
    Store(
        "newer Ollama",
        lambda home, model: stores.put_in_ollama_v2(home / ".ollama/models", model.read_bytes(), "alpacas", "7b"),
        ("alpacas:7b",),
    ),
    Store(
        "llama.cpp",
        lambda home, model: stores.put_in_llama_cpp(
            home / ".cache/llama.cpp", model.read_bytes(), "org_cpp-GGUF_cpp.gguf"
        ),
        ("org_cpp-GGUF_cpp",),
    ),
    Store(
        "a folder of my own",
        lambda home, model: stores.put(home / "llms" / "deeper" / "mine.gguf", model.read_bytes()),
        ("mine",),
    ),
]


@pytest.fixture
def user(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of one who keeps models in ``llms``, too, and whose temporary files come to ``tmp``."""
    monkeypatch.setenv("ZEPHYR_LOCAL_SEARCH_FOLDERS", os.pathsep.join([str(home / "llms"), str(home / "nowhere")]))
    (home / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(home / "tmp"))
    return home


@pytest.mark.parametrize("store", STORES, ids=lambda store: store.owner)
def test_the_command_answers_with_the_model_where_it_lies(user: Path, tmp_path: Path, store: Store):
    store.put(user, write_reciting_model(tmp_path, store.sentence, n_block=1))
    before = _everything(user)
    for name in store.names:
        done = zephyr_local("chat", name, "Where do you lie?")
        assert (done.returncode, done.stdout) == (0, f"{store.sentence}\n"), done.stderr
    _assert_used_in_place(user, before)


def test_the_library_answers_with_each_of_them(user: Path, tmp_path: Path):
    for store in STORES:
        store.put(user, write_reciting_model(tmp_path, store.sentence, n_block=1))
    before = _everything(user)
    code = """
import json, sys
from zephyr_local import Zephyr
for name in sys.argv[1:]:
    with Zephyr(name) as zephyr:
        print(json.dumps(zephyr.complete([{"role": "user", "content": "Where do you lie?"}]).text))
"""
    names = [store.names[0] for store in STORES]
    done = subprocess.run([sys.executable, "-c", code, *names], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == [store.sentence for store in STORES]
    _assert_used_in_place(user, before)


def test_a_name_of_ollamas_tells_the_template_that_its_file_does_not(user: Path, tmp_path: Path):
    model = model_of_file(write_reciting_model(tmp_path, "I lie in a blob.", n_block=1))
    model.metadata["general.name"] = ("str", "a model of 2023")
    for name in ("zephyr", "llamas"):
        stores.put_in_ollama(user / ".ollama/models", model.build(), name, "7b")
    done = zephyr_local("chat", "zephyr:7b", "Where do you lie?")
    assert (done.returncode, done.stdout) == (0, "I lie in a blob.\n"), done.stderr
    assert "zephyr:7b has no chat template; Zephyr's is used" in done.stderr
    other = zephyr_local("chat", "llamas:7b", "Where do you lie?")
    assert other.returncode == 1
    assert "has no chat template" in other.stderr
    with Zephyr("zephyr:7b") as zephyr:
        assert zephyr.complete([{"role": "user", "content": "Where do you lie?"}]).text == "I lie in a blob."


def test_a_chat_that_is_saved_goes_on_with_the_model_in_its_place(user: Path, tmp_path: Path):
    store = STORES[1]
    store.put(user, write_reciting_model(tmp_path, store.sentence, n_block=1))
    before = _everything(user)
    assert zephyr_local("chat", "--save", store.names[0], "Where do you lie?").returncode == 0
    done = zephyr_local("chat", "--continue", "And now?")
    assert (done.returncode, done.stdout) == (0, f"{store.sentence}\n"), done.stderr
    _assert_used_in_place(user, before)


def test_one_command_is_all_that_a_new_user_needs(user: Path, tmp_path: Path):
    sentence = "Hello, I was here already."
    model = write_reciting_model(tmp_path, sentence, n_block=1)
    folder = user / ".lmstudio/models"
    stores.put_in_lm_studio(folder, model.read_bytes(), "TheBloke/zephyr-7B-beta-GGUF", "zephyr-7b-beta.Q4_K_M.gguf")
    before = _everything(user)
    for name in ("zephyr-7b-beta", "zephyr-7b-beta:q4_k_m", "Zephyr_7B_Beta"):
        done = zephyr_local("chat", name, "Hello?")
        assert (done.returncode, done.stdout) == (0, f"{sentence}\n"), done.stderr
    _assert_used_in_place(user, before)


def _everything(home: Path) -> dict[str, Any]:
    """What lies below a home, with what would tell that it was written to."""
    return {str(path.relative_to(home)): _state(path) for path in _below(home)}


def _below(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _below(path)


def _state(path: Path) -> object:
    status = path.lstat()
    if path.is_symlink():
        return path.readlink(), status.st_mtime_ns, status.st_ino
    what = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else _sha256(path)
    return what, status.st_mtime_ns, status.st_mode, status.st_ino, status.st_nlink


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _assert_used_in_place(home: Path, before: dict[str, Any]) -> None:
    """Nothing changed but in zephyr-local's own folders, and there no file holds a model that was not there."""
    ours = [home / folder for folder in _OWN]
    above = {parent for folder in ours for parent in folder.parents}  # which a folder of ours may have come to
    after = {str(path.relative_to(home)): path for path in _below(home)}
    for name, state in before.items():
        if home / name not in (*ours, *above):
            assert name in after, f"{name} is gone"
            assert _state(after[name]) == state, f"{name} was changed"
    models = {_sha256(home / name) for name in before if (home / name).is_file()}
    for name in after.keys() - before.keys():
        path = after[name]
        assert path in above or any(path == folder or folder in path.parents for folder in ours), f"{name} is new"
        if path.is_file():
            assert path.read_bytes()[:4] != b"GGUF", f"{name} is a model"
            assert _sha256(path) not in models, f"{name} is a copy"
