"""A chat on disk: whole or absent, read with suspicion."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from tests.scripted_model import ScriptedModel
from zephyr_local import chat_file
from zephyr_local.chat import Chat
from zephyr_local.chat_types import Message
from zephyr_local.errors import InvalidInputError, OutputError

MODEL = ScriptedModel()


def branched() -> Chat:
    """A chat with two branches, a drop, and text that is hard to write."""
    model = ScriptedModel(["a0"], ["日本語 \ud800 \x00"], ["a2"], ["b1"], ["They talked."], ["c"])
    chat = Chat(model, system='Be "brief".\n', reserve_tokens=2)
    for question in ("q0", "Straße", "q2"):
        chat.ask(question)
    list(chat.edit(2, "other"))
    chat.policy, model.n_ctx = "drop_oldest", 12
    chat.ask("new")
    return chat


def good() -> dict[str, object]:
    loaded: dict[str, object] = json.loads(branched().to_json())
    return loaded


def test_a_chat_comes_back_as_it_was(tmp_path: Path):
    chat = branched()
    assert len(chat.drops) == 1
    chat.save(tmp_path / "chat.json")
    again = Chat.load(MODEL, tmp_path / "chat.json")
    assert again.messages == chat.messages
    assert again.sent == chat.sent != chat.messages
    assert (again.system, again.policy, again.reserve_tokens) == (chat.system, "drop_oldest", 2)
    assert again.siblings(2) == chat.siblings(2)
    again.select(2, 0)
    assert again.turns[3] == Message("assistant", "日本語 \ud800 \x00")
    assert Chat.from_json(MODEL, chat.to_json()).to_json() == chat.to_json()
    assert "Straße" in (tmp_path / "chat.json").read_text("utf-8")
    empty = Chat.from_json(MODEL, Chat(MODEL).to_json().encode())
    assert empty.messages == ()
    assert [path.name for path in tmp_path.iterdir()] == ["chat.json"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes and links")
def test_modes_and_links_stay(tmp_path: Path):
    path, link = tmp_path / "chat.json", tmp_path / "link.json"
    Chat(MODEL).save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    link.symlink_to(path)
    branched().save(link)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert len(Chat.load(MODEL, path).turns) == 6


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "chat.json"
    branched().save(path)
    before = path.read_bytes()

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match=r"chat\.json cannot be written: No space left"):
            Chat(MODEL).save(path)
    with monkeypatch.context() as patched:
        patched.setattr(chat_file, "MAX_BYTES", 100)
        with pytest.raises(OutputError, match="more than the 100 that are read again"):
            branched().save(path)
        with pytest.raises(InvalidInputError, match="over the limit of 100 bytes"):
            Chat.load(MODEL, path)
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["chat.json"]
    for wrong in (tmp_path / "none" / "chat.json", tmp_path, tmp_path / "null\0"):
        with pytest.raises(OutputError, match="cannot be written"):
            branched().save(wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["chat.json"]


def test_what_is_no_file_is_not_read(tmp_path: Path):
    with pytest.raises(InvalidInputError, match="cannot be read: No such file"):
        Chat.load(MODEL, tmp_path / "none")
    with pytest.raises(InvalidInputError, match=r"cannot be read|is not a file"):
        Chat.load(MODEL, tmp_path / "null\0")
    with pytest.raises(InvalidInputError, match="is not a file"):
        Chat.load(MODEL, tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(InvalidInputError, match="is not a file"):
            Chat.load(MODEL, tmp_path / "pipe")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "it is not JSON, line 1"),
        (b"\xff{}", "it is not UTF-8 at byte 0"),
        ("{", "it is not JSON, line 1"),
        ("[" * 200_000, "nested too deep"),
        ("9" * 5000, "thousands of digits"),
        ("[]", "the chat is not a JSON object"),
        ("{}", "the format is not 'zephyr-local chat'"),
        ('{"format": "zephyr-local chat"}', "is of version None, and this release reads version 1"),
        ('{"format": "zephyr-local chat", "version": 2, "more": 1}', "is of version 2"),
        ('{"format": "zephyr-local chat", "version": true}', "is of version True"),
        ('{"format": "zephyr-local chat", "version": 1}', "the chat has no system"),
    ],
)
def test_text_that_is_no_chat_is_refused(text: str | bytes, match: str):
    with pytest.raises(InvalidInputError, match=match):
        Chat.from_json(MODEL, text)


TURN = {"parent": None, "role": "user", "content": "q"}
ANSWER = {"parent": 0, "role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"more": 1}, "the chat has 'more', which is not known"),
        ({"system": 1}, "system is neither text nor null"),
        ({"policy": ["stop"]}, "the policy is not one of"),
        ({"reserve_tokens": 0}, "reserve_tokens is not a whole number"),
        ({"reserve_tokens": 1.5}, "reserve_tokens is not a whole number"),
        ({"reserve_tokens": True}, "reserve_tokens is not a whole number"),
        ({"turns": {}}, "turns is not a JSON array"),
        ({"turns": [1]}, "turn 0 is not a JSON object"),
        ({"turns": [{"role": "user", "content": "q"}]}, "turn 0 has no parent"),
        ({"turns": [TURN | {"name": "x"}]}, "turn 0 has 'name'"),
        ({"turns": [TURN | {"parent": 0}]}, "parent of turn 0 is not a turn before it"),
        ({"turns": [TURN | {"parent": 1}, ANSWER]}, "parent of turn 0 is not a turn before it"),
        ({"turns": [TURN, ANSWER | {"parent": -1}]}, "parent of turn 1 is not a turn before it"),
        ({"turns": [TURN, ANSWER | {"parent": False}]}, "parent of turn 1 is not a turn before it"),
        ({"turns": [TURN, ANSWER | {"parent": 0.0}]}, "parent of turn 1 is not a turn before it"),
        ({"turns": [TURN | {"role": "assistant"}]}, "turn 0 must have the role user"),
        ({"turns": [TURN | {"role": "system"}]}, "turn 0 must have the role user"),
        ({"turns": [TURN, ANSWER | {"role": "user"}]}, "turn 1 must have the role assistant"),
        ({"turns": [TURN | {"content": ["q"]}, ANSWER]}, "content of turn 0 is not text"),
        ({"turns": [TURN]}, "turn 0 is a question without an answer"),
        ({"current": 0}, "current does not name an answer"),
        ({"current": 2}, "current does not name an answer"),
        ({"current": -1}, "current does not name an answer"),
        ({"current": "1"}, "current does not name an answer"),
        ({"dropped": None}, "dropped is not a JSON array"),
        ({"dropped": [{"after": 0, "summary": None}]}, "dropped 0 does not name an answer"),
        ({"dropped": [{"after": 1, "summary": 1}]}, "summary of dropped 0 is neither text nor null"),
        ({"dropped": [{"after": 1, "summary": None}] * 2}, "dropped 1 names a turn that another one names"),
    ],
)
def test_a_chat_with_something_wrong_in_it_is_refused(changes: dict[str, object], match: str, tmp_path: Path):
    plain = good() | {"turns": [TURN, ANSWER], "current": 1, "dropped": []}
    assert len(Chat.from_json(MODEL, json.dumps(plain)).turns) == 2
    (tmp_path / "chat.json").write_text(json.dumps(plain | changes))
    with pytest.raises(InvalidInputError, match=rf"chat\.json: this is not a chat: .*{match}"):
        Chat.load(MODEL, tmp_path / "chat.json")


def test_a_long_chat_is_read_in_a_moment():
    turns = [
        {"parent": index - 1 if index else None, "role": ("user", "assistant")[index % 2], "content": "x"}
        for index in range(100_000)
    ]
    chat = Chat.from_json(MODEL, json.dumps(good() | {"turns": turns, "current": 99_999, "dropped": []}))
    assert len(chat.turns) == 100_000
    chat.select(0, 0)
    assert len(chat.branch().turns) == 100_000
