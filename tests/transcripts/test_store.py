"""The store of chats: what a journal tells of is there, whatever ends the process."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.cli.command import ROOT
from tests.scripted_model import FINISH, ScriptedModel
from zephyr_local.chat import Chat
from zephyr_local.chat_file import ChatRecord
from zephyr_local.chat_tree import ChatTree
from zephyr_local.chat_types import Message
from zephyr_local.errors import ChatStoreError, InvalidInputError, OutputError
from zephyr_local.transcripts.schema import APPLICATION_ID, MIGRATIONS, VERSION
from zephyr_local.transcripts.store import ChatStore
from zephyr_local.transcripts.stored_chat import ChatOrigin, StoredChat, title_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chats.db"


def begin(store: ChatStore, *answers: list[str | BaseException], system: str | None = None) -> tuple[Chat, StoredChat]:
    """A chat with a model that gives these answers, kept in the store."""
    record = ChatRecord(system, "stop", None, ChatTree())
    stored = StoredChat.new(store, record, ChatOrigin("/models/a.gguf", "zephyr", (("top_k", 7),)))
    stored.model_name = "scripted"
    chat = Chat.of(ScriptedModel(*answers), record)
    chat.journal = stored
    return chat, stored


def reopened(path: Path, chat: int = 1) -> tuple[StoredChat, ChatRecord]:
    return StoredChat.resume(ChatStore(path), chat)


def test_turns_are_there_when_the_answer_is_over(path: Path) -> None:
    store = ChatStore(path)
    chat, stored = begin(store, ["Pa", "ris."], ["Rome."], system="Be brief.")
    assert stored.id is None
    assert store.summaries() == []
    chat.ask("Capital of France?")
    chat.ask("of Italy?")
    stored.close()
    other, record = reopened(path)
    assert Chat.of(ScriptedModel(), record).messages == chat.messages
    assert record.system == "Be brief."
    assert other.origin == ChatOrigin("/models/a.gguf", "zephyr", (("top_k", 7),))
    assert other.unanswered is None
    (summary,) = store.summaries()
    assert (summary.title, summary.turns, summary.branches) == ("Capital of France?", 4, 1)
    assert summary.models == ("scripted",)
    assert [turn.state for turn in store.turns(1)] == ["whole"] * 4


def test_each_piece_is_there_before_it_is_given(path: Path) -> None:
    store, reader = ChatStore(path), ChatStore(path)
    chat, _ = begin(store, ["one ", "two ", "three"])
    seen = ""
    for piece in chat.stream("Count"):
        seen += piece.text
        if piece.finish is None:
            turns = reader.turns(1)
            assert [turn.message.content for turn in turns] == ["Count", seen]
            assert turns[-1].state == "writing"
    assert reader.turns(1)[-1].state == "whole"


def test_an_answer_that_was_left_is_interrupted_and_one_that_nothing_came_of_is_not_there(path: Path) -> None:
    store = ChatStore(path)
    chat, stored = begin(store, ["one ", "two"], [RuntimeError("no")], ["x", RuntimeError("later")])
    pieces = chat.stream("Count")
    next(pieces)
    pieces.close()
    with pytest.raises(RuntimeError):
        chat.ask("lost")
    with pytest.raises(RuntimeError):
        chat.ask("half")
    assert [(turn.message.content, turn.state) for turn in store.turns(1)] == [
        ("Count", "whole"),
        ("one ", "interrupted"),
        ("half", "whole"),
        ("x", "interrupted"),
    ]
    stored.close()
    assert Chat.of(ScriptedModel(), reopened(path)[1]).turns == chat.turns


def test_a_chat_whose_only_question_failed_is_not_there(path: Path) -> None:
    store = ChatStore(path)
    chat, stored = begin(store, [RuntimeError("no")], ["yes"])
    with pytest.raises(RuntimeError):
        chat.ask("lost")
    assert store.summaries() == []
    assert stored.id is None
    chat.ask("kept")
    assert [summary.title for summary in store.summaries()] == ["kept"]


def test_branches_come_back(path: Path) -> None:
    store = ChatStore(path)
    chat, stored = begin(store, ["a"], ["b"], ["c"], ["d"], ["e and more"])
    chat.ask("1")
    list(chat.regenerate())
    chat.ask("2")
    list(chat.edit(2, "3"))
    chat.undo()
    list(chat.continue_answer())
    stored.close()
    record = reopened(path)[1]
    again = Chat.of(ScriptedModel(), record)
    assert again.turns == chat.turns == (Message("user", "1"), Message("assistant", "be and more"))
    assert again.branches() == chat.branches()
    assert len(again.branches()) == 4


def test_what_was_dropped_stays_dropped(path: Path) -> None:
    store = ChatStore(path)
    chat, stored = begin(store, ["a b c"], ["d e f"], ["g"])
    chat.zephyr.n_ctx = 20  # type: ignore[misc]
    chat.policy, chat.reserve_tokens = "drop_oldest", 2
    chat.ask("one two three four")
    chat.ask("five six seven eight")
    chat.ask("nine ten eleven twelve thirteen")
    assert chat.drops
    stored.close()
    again = Chat.of(ScriptedModel(), reopened(path)[1])
    assert again.sent == chat.sent != chat.turns
    assert (again.policy, again.reserve_tokens) == ("drop_oldest", 2)


def test_settings_and_titles_are_kept(path: Path) -> None:
    store = ChatStore(path)
    chat, stored = begin(store, ["a"])
    stored.title = "Before"
    chat.ask("1")
    chat.system = "Now"
    chat.policy = "summarise"
    stored.origin = ChatOrigin(None, None, (("stop", ("x",)), ("temperature", 0.5)))
    assert store.require(1).title == "Before"
    stored.title = "After"
    stored.close()
    other, record = reopened(path)
    assert (other.title, record.system, record.policy) == ("After", "Now", "summarise")
    assert dict(other.origin.sampling) == {"stop": ["x"], "temperature": 0.5}
    assert other.origin.model is None


def test_clearing_a_chat_forgets_its_turns(path: Path) -> None:
    store = ChatStore(path)
    chat, _ = begin(store, ["a"], ["b"])
    chat.ask("1")
    chat.clear()
    assert store.turns(1) == []
    chat.ask("2")
    assert [turn.message.content for turn in store.turns(1)] == ["2", "b"]


KILLED = """
import os, sys
from pathlib import Path
from tests.transcripts.test_store import begin
from zephyr_local.transcripts.store import ChatStore

chat, _ = begin(ChatStore(Path(sys.argv[1])), ["whole"], ["one ", "two ", "three"], [])
chat.ask("first")
if sys.argv[2] == "in an answer":
    pieces = chat.stream("second")
    next(pieces), next(pieces)
elif sys.argv[2] == "before an answer":
    chat.zephyr.stream = lambda *_, **__: os.kill(os.getpid(), 9)
    chat.ask("second")
else:
    pieces = chat.continue_answer()
    next(pieces)
os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL on Windows")
@pytest.mark.parametrize(
    ("when", "contents", "unanswered"),
    [
        ("in an answer", ["first", "whole", "second", "one two "], None),
        ("before an answer", ["first", "whole"], "second"),
        ("going on", ["first", "wholeone "], None),
    ],
)
def test_after_a_kill_all_pieces_are_there(path: Path, when: str, contents: list[str], unanswered: str | None) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, path, when], cwd=ROOT, timeout=60)
    assert killed.returncode == -9
    stored, record = reopened(path)
    assert [turn.content for turn in Chat.of(ScriptedModel(), record).turns] == contents
    assert stored.unanswered == unanswered
    if unanswered is None:
        assert ChatStore(path).turns(1)[-1].state == "interrupted"
    chat = Chat.of(ScriptedModel(["on"]), record)
    chat.journal = stored
    chat.ask("third")
    assert [turn.message.content for turn in ChatStore(path).turns(1)] == [*contents, "third", "on"]


def test_two_cannot_have_the_same_chat(path: Path) -> None:
    store = ChatStore(path)
    chat, stored = begin(store, ["a"])
    chat.ask("1")
    with pytest.raises(InvalidInputError, match="chat 1 is open in another terminal"):
        reopened(path)
    code = f"""
from pathlib import Path
from zephyr_local.transcripts.store import ChatStore
store = ChatStore(Path({str(path)!r}))
print(store.is_open(1), store.newest())
"""
    other = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert other.stdout.split() == ["True", "None"], other.stderr
    with pytest.raises(InvalidInputError, match="is open"):
        store.remove([1])
    stored.close()
    assert store.newest() == 1
    reopened(path)


def test_many_threads_and_stores_write_at_once(path: Path) -> None:
    ChatStore(path).close()
    problems: list[BaseException] = []

    def talk() -> None:
        try:
            store = ChatStore(path)
            for number in range(5):
                chat, stored = begin(store, ["a ", "b ", f"c{number}"])
                chat.ask("question")
                stored.close()
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=talk) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    store = ChatStore(path)
    assert len(store.summaries()) == 30
    assert all(len(store.turns(summary.id)) == 2 for summary in store.summaries())


def test_search_finds_every_case_in_every_branch_and_title(path: Path) -> None:
    store = ChatStore(path)
    chat, stored = begin(store, ["The STRASSE is long. " * 5], ["no"])
    chat.ask("Tell me of the straße")
    list(chat.edit(0, "other"))
    stored.title = "Ein Weg"
    begin(store, ["nothing"])[0].ask("50% of 100_000?")
    assert [(hit.chat, hit.role) for hit in store.search("strasse")] == [(1, "user"), (1, "assistant")]
    assert [hit.role for hit in store.search("WEG")] == ["title"]
    assert store.search("50% of 100_000")[-1].chat == 2
    assert store.search("0%0") == []
    snippet = store.search("strasse")[1].snippet
    assert "STRASSE" in snippet
    assert len(snippet) < 100
    assert snippet.endswith("…")


def test_removed_chats_leave_nothing_in_the_file(path: Path) -> None:
    store = ChatStore(path)
    chat, stored = begin(store, ["an answer of no consequence"])
    chat.ask("a secret that must go")
    stored.close()
    store.remove([1])
    store.close()
    for file in path.parent.iterdir():
        assert b"secret" not in file.read_bytes(), file
    store = ChatStore(path)
    assert store.summaries() == []
    with pytest.raises(InvalidInputError, match="there is no chat 1"):
        store.remove([1])
    begin(store, ["b"])[0].ask("next")
    assert store.summaries()[0].id == 2, "a number is never given again"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_nobody_else_can_read_it(path: Path) -> None:
    before = os.umask(0)
    try:
        store = ChatStore(path.parent / "folder" / "chats.db")
        begin(store, ["a"])[0].ask("1")
    finally:
        os.umask(before)
    assert stat.S_IMODE((path.parent / "folder").stat().st_mode) == 0o700
    for file in (path.parent / "folder").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_writes_are_synchronous_and_in_wal_mode(path: Path) -> None:
    store = ChatStore(path)
    assert store.rows("PRAGMA journal_mode") == [("wal",)]
    assert store.rows("PRAGMA synchronous") == [(2,)], "2 is FULL"


def make_version(path: Path, version: int) -> None:
    """A store as an older release left it, with a chat of two turns."""
    connection = sqlite3.connect(path)
    for statements in MIGRATIONS[:version]:
        for statement in statements:
            connection.execute(statement)
    connection.execute(
        "INSERT INTO chats (id, title, created_s, changed_s, policy, leaf) VALUES (1, 'old', 1.0, 2.0, 'stop', 1)"
    )
    for node, role in enumerate(("user", "assistant")):
        connection.execute(
            "INSERT INTO turns (chat, node, parent, role, content, state, created_s)"
            " VALUES (1, ?, ?, ?, ?, 'whole', 1.0)",
            (node, node - 1 if node else None, role, f"text {node}"),
        )
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {version}")
    connection.commit()
    connection.close()


@pytest.mark.parametrize("version", range(1, VERSION + 1))
def test_a_store_of_each_older_version_is_read_and_goes_on(path: Path, version: int) -> None:
    make_version(path, version)
    stored, record = reopened(path)
    chat = Chat.of(ScriptedModel(["new"]), record)
    assert [turn.content for turn in chat.turns] == ["text 0", "text 1"]
    assert stored.origin == ChatOrigin()
    chat.journal = stored
    chat.ask("more")
    assert ChatStore(path).rows("PRAGMA user_version") == [(VERSION,)]
    assert len(ChatStore(path).turns(1)) == 4


def test_a_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_version(path, 1)
    broken = (*MIGRATIONS[:1], (*MIGRATIONS[1], "this is no SQL"))
    monkeypatch.setattr("zephyr_local.transcripts.schema.MIGRATIONS", broken)
    with pytest.raises(ChatStoreError):
        ChatStore(path)
    monkeypatch.undo()
    assert len(ChatStore(path).turns(1)) == 2


def test_a_newer_store_is_refused_and_left_alone(path: Path) -> None:
    make_version(path, VERSION)
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    before = path.read_bytes()
    with pytest.raises(
        ChatStoreError, match=f"of version {VERSION + 1}, and this release reads up to version {VERSION}"
    ):
        ChatStore(path)
    assert path.read_bytes() == before


def test_other_files_are_refused_and_left_alone(path: Path, tmp_path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    with pytest.raises(ChatStoreError, match="another program's database"):
        ChatStore(path)
    text = tmp_path / "notes.txt"
    text.write_bytes(b"dear diary " * 100)
    text.chmod(0o600)
    with pytest.raises(ChatStoreError, match="damaged"):
        ChatStore(text)
    assert text.read_bytes() == b"dear diary " * 100
    with pytest.raises(OutputError):
        ChatStore(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE turns SET role = 'user' WHERE node = 1",
        "UPDATE turns SET parent = 7 WHERE node = 1",
        "UPDATE turns SET node = 5 WHERE node = 1",
        "UPDATE chats SET leaf = 0",
        "UPDATE chats SET leaf = 9",
        "UPDATE chats SET policy = 'guess'",
    ],
)
def test_a_chat_that_cannot_be_is_refused(path: Path, damage: str) -> None:
    make_version(path, VERSION)
    with sqlite3.connect(path) as connection:
        connection.execute(damage)
    with pytest.raises(ChatStoreError, match="damaged"):
        reopened(path)


def test_a_store_in_memory_is_a_store(tmp_path: Path) -> None:
    store = ChatStore(None)
    chat, stored = begin(store, ["a"], ["b"])
    chat.ask("1")
    stored.close()
    other, record = StoredChat.resume(store, 1)
    again = Chat.of(ScriptedModel(["b"]), record)
    again.journal = other
    again.ask("2")
    assert len(store.turns(1)) == 4
    assert list(tmp_path.iterdir()) == []


def test_titles() -> None:
    assert title_of("  What is\n\tthis? ") == "What is this?"
    assert title_of(" \n ") == "(empty)"
    long = title_of("word " * 50)
    assert len(long) <= 60
    assert long.endswith("word…")


def test_the_finish_of_an_answer_is_its_state(path: Path) -> None:
    from dataclasses import replace

    store = ChatStore(path)
    chat, stored = begin(store, ["a"])
    for number, (reason, state) in enumerate((("stop", "whole"), ("length", "length"), ("cancelled", "interrupted"))):
        stored.begin(None if number == 0 else 2 * number - 1, Message("user", "q"), "")
        stored.add("text")
        stored.end(True, replace(FINISH, reason=reason))  # type: ignore[arg-type]
        assert store.turns(1)[-1].state == state
    assert chat.turns == ()


@pytest.mark.skipif(os.name == "nt", reason="Windows' paths are text")
def test_a_model_whose_path_is_no_utf8_is_found_again(path: Path) -> None:
    name = os.fsdecode(b"/models/caf\xe9.gguf")
    store = ChatStore(path)
    stored = StoredChat.new(store, ChatRecord(None, "stop", None, ChatTree()), ChatOrigin(name, "zephyr"))
    chat = Chat.of(ScriptedModel(["a"]), ChatRecord(None, "stop", None, ChatTree()))
    chat.journal = stored
    chat.ask("1")
    stored.close()
    assert reopened(path)[0].origin == ChatOrigin(name, "zephyr")


def test_sharegpt_has_no_answer_that_is_not_whole(path: Path) -> None:
    from zephyr_local.transcripts.export import to_sharegpt

    store = ChatStore(path)
    chat, _ = begin(store, ["a"], ["half", "more"], ["c"], system="Be brief.")
    chat.ask("1")
    pieces = chat.stream("2")
    next(pieces)
    pieces.close()
    chat.ask("3")
    conversation = to_sharegpt(1, "Be brief.", store.turns(1))["conversations"]
    assert [entry["value"] for entry in conversation] == ["Be brief.", "1", "a", "3", "c"]
    assert [entry["from"] for entry in conversation] == ["system", "human", "gpt", "human", "gpt"]
