"""Each /command of the terminal chat on a real pseudo-terminal: answers, the past, and what goes in and out."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path

from tests.repl.terminal_driver import Terminal
from tests.scripted_model import ScriptedModel
from zephyr_local import Chat
from zephyr_local.chat_file import ChatRecord, dump_chat
from zephyr_local.chat_tree import ChatTree
from zephyr_local.chat_types import Message
from zephyr_local.repl.commands import COMMANDS

OpenChat = Callable[..., Terminal]
GREEDY = ("--temperature", "0")
NO_CLIPBOARD = {"DISPLAY": "", "WAYLAND_DISPLAY": ""}
FRANCE, JAPAN, ITALY = (f"What is the capital of {country}?" for country in ("France", "Japan", "Italy"))


def told(chat: Terminal, line: str) -> str:
    """What a line brings onto the screen, up to the next prompt."""
    text = chat.ask(line)
    _, found, after = text.rpartition(f"> {line}\n")
    assert found, text
    return after.rpartition("\n")[0]


def begin(chat: Terminal, line: str, draft: str) -> None:
    """Send a line and wait until ``draft`` stands at the prompt."""
    chat.say(line)
    chat.wait(lambda text: text.endswith(f"> {draft}"))


def numbers(text: str) -> list[int]:
    """The words of the counting model in a text."""
    return [int(word) for word in re.findall(r"\bw(\d\d)\b", text)]


def write_chat_file(path: Path, *turns: str) -> Path:
    tree = ChatTree()
    for question, answer in zip(turns[::2], turns[1::2], strict=True):
        tree.leaf = tree.add(tree.leaf, Message("user", question), Message("assistant", answer))
    path.write_text(dump_chat(ChatRecord(None, "stop", 1, tree)))
    return path


# --- answers ---


def test_regen_gives_another_answer_and_keeps_the_one_before(open_chat: OpenChat):
    chat = open_chat()
    assert "no question to answer again" in told(chat, "/regen")
    chat.ask(FRANCE, "Paris")
    chat.ask("/set logit_bias " + " ".join(f"{token}:-inf" for token in range(259, 300)))
    other = told(chat, "/regen")
    assert other
    listed = told(chat, "/branches").splitlines()
    assert len(listed) == 3
    assert listed[0].startswith("   1    2 turns")
    assert listed[1].startswith("*  2    2 turns")
    assert "Paris" in listed[0]
    assert "Paris" in told(chat, "/branches 1")
    assert told(chat, "/branches").splitlines()[0].startswith("*  1")


def test_edit_with_a_text_asks_that_question_again(open_chat: OpenChat):
    chat = open_chat()
    assert "no question to edit" in told(chat, "/edit")
    chat.ask(FRANCE, "Paris")
    chat.ask(JAPAN, "Tokyo")
    assert "Rome" in told(chat, f"/edit 1 {ITALY}")
    assert told(chat, "/show") == f"1 > {ITALY}\nThe capital of Italy is Rome."
    for wrong in ("2", "0", "-1", "x", "9" * 30):
        assert "Give a number from 1 to 1" in told(chat, f"/edit {wrong} text")
    assert "Tokyo" in told(chat, "/branches 1")


def test_edit_brings_the_question_to_the_prompt(open_chat: OpenChat):
    chat = open_chat()
    chat.ask(FRANCE, "Paris")
    chat.ask("Hello", "Hello!")
    begin(chat, "/edit 1", FRANCE)
    assert " edit > " in chat.last_line
    chat.send("\b" * len("France?") + "Japan?")
    chat.wait(lambda text: text.endswith(f"edit > {JAPAN}"))
    chat.send("\x1b[H\x1b[3~\x1b[3~W\x1b[F")  # Home, Delete twice, End
    chat.wait(lambda text: text.endswith("edit > Wat is the capital of Japan?"))
    chat.send("\r")
    chat.prompt(answers="Tokyo")
    assert "edit" not in chat.last_line
    assert told(chat, "/show").startswith("1 > Wat is the capital of Japan?\n")
    begin(chat, "/edit", "Wat is the capital of Japan?")


def test_ctrl_c_leaves_a_question_that_is_edited_as_it_was(open_chat: OpenChat):
    chat = open_chat()
    chat.ask(FRANCE, "Paris")
    begin(chat, "/edit", FRANCE)
    chat.send("\b\b\b")
    chat.control("c")
    chat.shows("The question stays as it was.")
    chat.prompt()
    assert "edit" not in chat.last_line
    chat.ask("Hello", "Hello!")
    assert told(chat, "/show").startswith(f"1 > {FRANCE}\nThe capital of France is Paris.\n2 > Hello\n")


def test_a_command_leaves_a_question_that_is_edited_as_it_was(open_chat: OpenChat):
    chat = open_chat()
    chat.ask(FRANCE, "Paris")
    begin(chat, "/edit", FRANCE)
    chat.control("u")
    assert "The question stays as it was." in told(chat, "/clear")
    assert "edit" not in chat.last_line
    chat.ask(JAPAN, "Tokyo")
    assert told(chat, "/show").startswith(f"1 > {JAPAN}\n")


def test_a_question_that_looks_like_a_command_comes_back_as_it_can_be_sent(open_chat: OpenChat):
    chat = open_chat()
    for typed, message in {"//regen": "/regen", '"""""" a': '""" a', '"""/x\r//y"""': "/x\n//y"}.items():
        chat.send(typed + "\r")
        chat.wait(lambda text: re.search(r"^[1-9]\d*/1024 >$", text.splitlines()[-1]) is not None)
        before = told(chat, "/show")
        assert before.startswith(f"1 > {message}\n")
        chat.send("/edit\r")
        chat.wait(lambda text: " edit > /" in text or ' edit > "' in text)
        chat.send("\r")
        chat.prompt()
        assert told(chat, "/show") == before
        assert len(told(chat, "/branches").splitlines()) == 3
        chat.ask("/clear")
        chat.screen.reset()


def test_continue_goes_on_without_a_gap_and_it_is_one_turn(open_chat: OpenChat, counting: str):
    chat = open_chat(counting, *GREEDY, "--max-tokens", "20")
    assert "no answer to go on with" in told(chat, "/continue")
    text = told(chat, "Count")
    assert numbers(text) == list(range(20))
    assert "cut at max_tokens 20; /continue goes on" in text
    for times in (1, 2):
        assert numbers(told(chat, "/continue")) == list(range(20 * times, 20 * times + 20))
    chat.screen.reset()
    assert numbers(told(chat, "/show")) == list(range(60))
    assert "2 turns" in told(chat, "/stats")
    assert numbers(told(chat, "/branches 1")) == list(range(20)), "the shorter one stays"


def test_continue_says_that_a_whole_answer_is_whole(open_chat: OpenChat):
    chat = open_chat()
    chat.ask(FRANCE, "Paris")
    assert told(chat, "/continue") == "[nothing follows: the answer was whole]"
    assert told(chat, "/show") == f"1 > {FRANCE}\nThe capital of France is Paris."


# --- the past ---


def test_undo_and_redo_several_times(open_chat: OpenChat):
    chat = open_chat()
    assert "no turns to undo" in told(chat, "/undo")
    used = [chat.wait(lambda text: text.endswith("/1024 >")).splitlines()[-1]]  # the model is loaded
    for question, answer in ((FRANCE, "Paris"), (JAPAN, "Tokyo"), (ITALY, "Rome")):
        chat.ask(question, answer)
        used.append(chat.last_line)
    for question, line in ((ITALY, used[2]), (JAPAN, used[1]), (FRANCE, used[0])):
        assert told(chat, "/undo") == f'Back to before "{question}"; /redo brings it back.'
        assert chat.last_line == line
    assert told(chat, "/show") == "The chat has no turns yet."
    for question, line in ((FRANCE, used[1]), (JAPAN, used[2])):
        assert told(chat, "/redo") == f'"{question}" and its answer are back.'
        assert chat.last_line == line
    chat.ask("Hello", "Hello!")
    assert "nothing was undone" in told(chat, "/redo")
    assert f"2 > {JAPAN}" in told(chat, "/show")
    assert "3 > Hello" in chat.text


def test_redo_takes_back_the_very_turn_that_was_undone(open_chat: OpenChat):
    chat = open_chat()
    chat.ask(FRANCE, "Paris")
    chat.ask(JAPAN, "Tokyo")
    chat.ask(f"/edit 2 {ITALY}", "Rome")
    chat.ask("/branches 1", "Tokyo")
    chat.ask("/undo", "Back")
    assert JAPAN in told(chat, "/redo")
    assert "Tokyo" in told(chat, "/show")


def test_branch_goes_on_in_a_copy(open_chat: OpenChat):
    chat = open_chat()
    chat.ask(FRANCE, "Paris")
    chat.ask(JAPAN, "Tokyo")
    assert told(chat, "/branch") == "This is chat 2 now, a copy with 4 turns; /load 1 goes back."
    assert told(chat, "/branch 1") == "This is chat 3 now, a copy with 2 turns; /load 2 goes back."
    assert "Give a number from 1 to 1" in told(chat, "/branch 2")
    chat.ask("Hello", "Hello!")
    assert "Tokyo" in told(chat, "/load 1")
    assert told(chat, "/show").count(" > ") == 2
    assert "3 turns" not in told(chat, "/chats")
    assert f"{FRANCE} (branch)" in chat.text


def test_there_is_no_branch_of_a_chat_without_turns(open_chat: OpenChat):
    chat = open_chat()
    assert told(chat, "/branch").startswith("error: the chat has no turns to branch from.")
    chat.ask(FRANCE, "Paris")
    chat.ask("/undo")
    assert told(chat, "/branch").startswith("error: the chat has no turns to branch from.")


def test_the_same_answer_again_says_why(open_chat: OpenChat):
    chat = open_chat()
    chat.ask(FRANCE, "Paris")
    assert "at temperature 0 it is the same answer" in told(chat, "/regen").replace("\n", " ")


def test_branches_lists_and_goes_over(open_chat: OpenChat):
    chat = open_chat()
    assert "no turns yet" in told(chat, "/branches")
    chat.ask(FRANCE, "Paris")
    chat.ask(JAPAN, "Tokyo")
    chat.ask(f"/edit 2 {ITALY}", "Rome")
    assert told(chat, "/branches").splitlines() == [
        "   1    4 turns  What is the capital of Japan? → The capital of Japan is Tokyo.",
        "*  2    4 turns  What is the capital of Italy? → The capital of Italy is Rome.",
        "/branches N goes over to one.",
    ]
    assert told(chat, "/branches 1") == f"> {JAPAN}\nThe capital of Japan is Tokyo."
    assert "Give a number from 1 to 2" in told(chat, "/branches 3")
    assert "Tokyo" in told(chat, "/show")


def test_without_saving_branches_and_chats_live_as_long_as_the_program(open_chat: OpenChat, tmp_path: Path):
    chat = open_chat("--no-save")
    assert "Nothing is saved" in chat.text
    chat.ask(FRANCE, "Paris")
    assert "which is not saved; /load 1 goes back" in told(chat, "/branch")
    chat.ask(JAPAN, "Tokyo")
    assert "Paris" in told(chat, "/load 1")
    assert "not saved" in told(chat, "/stats")
    assert "Nothing is saved (--no-save)" in told(chat, "/save")
    chat.control("d")
    assert chat.ended() == 0
    assert [path for path in (tmp_path / "home").rglob("*") if path.is_file()] == []


def test_clear_begins_a_new_chat_and_says_how_to_go_back(open_chat: OpenChat):
    chat = open_chat("--system", "Be brief.")
    assert told(chat, "/clear") == "A new chat; the system prompt stays."
    chat.ask(FRANCE, "Paris")
    assert told(chat, "/clear") == "A new chat; the system prompt stays. The one before is chat 1; /load 1 goes back."
    assert told(chat, "/system") == "The system prompt: Be brief."
    assert told(chat, "/show") == "system: Be brief.\nThe chat has no turns yet."
    assert "Paris" in told(chat, "/load 1")


# --- in and out ---


def test_copy_gives_the_answer_to_the_tool_that_is_there(open_chat: OpenChat, tmp_path: Path):
    tools = {"xclip": 'test "$*" = "-selection clipboard" && cat > "$COPIED"', "wl-copy": 'cat > "$COPIED"; exit 1'}
    (tmp_path / "bin").mkdir()
    for name, script in tools.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    copied = tmp_path / "copied"
    found = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "COPIED": str(copied), "DISPLAY": ":9"}
    chat = open_chat(environment=NO_CLIPBOARD | found)
    assert "no answer to copy" in told(chat, "/copy")
    chat.ask(FRANCE, "Paris")
    answer = "The capital of France is Paris."
    assert told(chat, "/copy") == f"Copied {len(answer)} characters with xclip."
    assert copied.read_text() == answer
    assert "no code block" in told(chat, "/copy code")
    assert "is not known" in told(chat, "/copy all")
    file = write_chat_file(
        tmp_path / "code.json", "How?", "So:\n```sh\nls\n```\n1. or\n   ~~~ py\n   x = 1\n\n   ~~~\n"
    )
    chat.ask(f"/load {file}", "2 turns")
    assert told(chat, "/copy code") == "Copied 7 characters with xclip."
    assert copied.read_text() == "x = 1\n\n"
    chat.control("d")
    assert chat.ended() == 0
    both = open_chat("--continue", environment=NO_CLIPBOARD | found | {"WAYLAND_DISPLAY": "w"})
    assert "with xclip" in told(both, "/copy"), "the tool before it failed"
    alone = open_chat("--continue", environment=NO_CLIPBOARD | found | {"WAYLAND_DISPLAY": "w", "DISPLAY": ""})
    assert "Handed 31 characters to the terminal" in told(alone, "/copy")


def test_copy_without_a_tool_asks_the_terminal(open_chat: OpenChat, tmp_path: Path):
    chat = open_chat(environment=NO_CLIPBOARD)
    long = write_chat_file(tmp_path / "long.json", "How?", "word " * 20_000)
    chat.ask(FRANCE, "Paris")
    assert "Handed 31 characters to the terminal" in told(chat, "/copy")
    text = base64.b64encode(b"The capital of France is Paris.")
    assert b"\x1b]52;c;" + text + b"\x07" in chat.raw
    chat.ask(f"/load {long}", "2 turns")
    assert "too long for the terminal's clipboard" in told(chat, "/copy")


def test_file_goes_with_the_next_message(open_chat: OpenChat, tmp_path: Path):
    (tmp_path / "my notes.txt").write_text("The password is ``` swordfish.\n")
    chat = open_chat(cwd=tmp_path, environment={"HOME": str(tmp_path)})
    assert told(chat, "/file") == "No file goes with the next message."
    for name in ("my notes.txt", '"my notes.txt"', "'my notes.txt'", "~/my notes.txt"):
        said = told(chat, f"/file {name}")
        (tokens,) = re.findall(r"^my notes.txt, (\d+) tokens, goes with your next message\.$", said)
        assert chat.last_line == "0/1024 +1 >"
        assert told(chat, "/file") == "With the next message: my notes.txt."
        chat.ask("Hello")
        used = int(chat.last_line.partition("/")[0])
        assert used > int(tokens) > 10
        assert chat.last_line == f"{used}/1024 >"
        shown = told(chat, "/show")
        assert "1 > my notes.txt:\n````\nThe password is ``` swordfish.\n````\n\nHello\n" in shown
        chat.ask("/clear")


def test_files_that_cannot_go_with_a_message(open_chat: OpenChat, tmp_path: Path):
    (tmp_path / "long.txt").write_text("one two three " * 500)
    (tmp_path / "huge.txt").write_text("one two three " * 50_000)
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes("Zürich".encode("latin-1"))
    (tmp_path / "binary").write_bytes(b"text\0text")
    (tmp_path / "half.txt").write_text("word " * 600)
    chat = open_chat(cwd=tmp_path)
    chat.ask("Hello", "Hello!")
    prompt = chat.last_line
    for name, reason in {
        "long.txt": "long.txt has ",
        "huge.txt": "huge.txt is over 65536 bytes, and the context holds 1024 tokens",
        "empty.txt": "empty.txt is empty",
        "latin.txt": "latin.txt is not UTF-8 text (byte 1)",
        "binary": "binary is not text",
        "nosuch.txt": "nosuch.txt cannot be read: No such file",
        ".": "cannot be read: Is a directory",
        "a" * 300: "File name too long",
    }.items():
        assert reason in told(chat, f"/file {name}") if len(name) < 90 else reason in chat.ask(f"/file {name}")
        assert chat.last_line == prompt
    chat.ask("/file half.txt", "tokens, goes with")
    assert "are free" in told(chat, "/file half.txt"), "both together do not fit"
    assert told(chat, "/file none") == "No file goes with the next message."
    assert chat.last_line == prompt


def test_a_file_stays_attached_where_the_answer_fails(open_chat: OpenChat, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("word " * 600)
    chat = open_chat(cwd=tmp_path)
    chat.ask("/file notes.txt", "goes with")
    before = chat.last_line
    chat.send("word " * 450 + "END\r")
    chat.wait(lambda text: "error:" in text and text.endswith("END"))
    chat.control("c")
    chat.prompt()
    assert chat.last_line == before
    assert before.endswith("+1 >")
    chat.ask("/clear")
    assert chat.last_line.endswith("+1 >"), "it still goes with the next message"
    chat.ask("/file none")
    assert "+1" not in chat.last_line


def test_save_writes_a_file_that_the_api_and_load_read(open_chat: OpenChat, tmp_path: Path):
    (tmp_path / "other.txt").write_text("not a chat")
    chat = open_chat(cwd=tmp_path)
    assert told(chat, "/save") == "The chat is saved by itself from its first question on."
    chat.ask(FRANCE, "Paris")
    assert told(chat, "/save").startswith("This is chat 1, and saved by itself")
    for _ in range(2):  # the second time over the first one
        assert told(chat, '/save "my chat.json"') == "Wrote my chat.json; /load my chat.json reads it."
    loaded = Chat.load(ScriptedModel(), tmp_path / "my chat.json")
    assert [turn.content for turn in loaded.turns] == [FRANCE, "The capital of France is Paris."]
    assert "other.txt exists and is no chat" in told(chat, "/save other.txt")
    assert (tmp_path / "other.txt").read_text() == "not a chat"
    assert "cannot be written" in told(chat, "/save nosuch/chat.json")
    assert "File name too long" in chat.ask("/save " + "a" * 300)
    chat.ask(JAPAN, "Tokyo")
    assert "Paris" in told(chat, "/load my chat.json")
    chat.ask("/stats", "2 turns, 1 branch, saved as chat 2")
    assert "Tokyo" in told(chat, "/load 1"), "the chat before is whole"


def test_load_refuses_what_is_no_chat_and_stays(open_chat: OpenChat, tmp_path: Path):
    write_chat_file(tmp_path / "7", "Whole?", "Yes.")
    (tmp_path / "cut.json").write_text((tmp_path / "7").read_text()[:90])
    chat = open_chat(cwd=tmp_path)
    chat.ask(FRANCE, "Paris")
    for argument, reason in {
        "": "/load needs a chat's number or a file",
        "cut.json": "this is not a chat: it is not JSON",
        "nosuch.json": "cannot be read: No such file",
        ".": "is not a file",
        "99": "there is no chat 99",
        "9" * 20: "cannot be read: No such file",
    }.items():
        assert reason in told(chat, f"/load {argument}".strip())
        assert "Paris" in told(chat, "/show")
    assert "2 turns" in told(chat, "/load 1"), "the chat that is open"
    assert "Whole?" in told(chat, "/load 7"), "a file goes before a number"


def test_a_chat_that_is_open_elsewhere_is_refused(open_chat: OpenChat):
    chat = open_chat()
    chat.ask(FRANCE, "Paris")
    other = open_chat()
    assert "chat 1 is open in another terminal" in told(other, "/load 1")
    chat.ask("/clear")
    assert "Paris" in told(other, "/load 1")


def test_title_and_chats(open_chat: OpenChat):
    chat = open_chat()
    assert told(chat, "/title") == "The chat has no title yet."
    assert told(chat, "/chats") == "There are no chats."
    chat.ask(FRANCE, "Paris")
    assert told(chat, "/title") == f"The chat is called '{FRANCE}'."
    assert told(chat, "/title A title of ours") == "The chat is called 'A title of ours'."
    chat.ask("/clear")
    assert told(chat, "/title Before it began") == "The chat is called 'Before it began'."
    chat.ask(JAPAN, "Tokyo")
    listed = told(chat, "/chats").splitlines()
    assert re.fullmatch(r"\* 2  \d{4}-\d\d-\d\d \d\d:\d\d    2 turns  Before it began  zephyr-tiny", listed[0])
    assert re.fullmatch(r"  1  .{16}    2 turns  A title of ours  zephyr-tiny", listed[1])
    assert [line[2] for line in told(chat, "/chats pARIs").splitlines()] == ["1"]
    assert [line[2] for line in told(chat, "/chats before it").splitlines()] == ["2"]
    assert told(chat, "/chats 50%_") == "No chat has that in it."


# --- the rest ---


def test_help_names_every_command_and_the_keys(open_chat: OpenChat):
    chat = open_chat()
    text = told(chat, "/help")
    assert all(
        re.search(rf"^{re.escape(command.usage)}  +{re.escape(command.help)}$", text, re.M) for command in COMMANDS
    )
    assert all(
        key in text for key in ("Ctrl+J", "Alt+Enter", '"""', "Ctrl+R", "Ctrl+X Ctrl+E", "Ctrl+C", "Ctrl+D", "//")
    )


def test_aliases_guesses_and_messages_with_a_slash(open_chat: OpenChat):
    chat = open_chat()
    assert "/nonsense is not a command. /help lists them" in told(chat, "/nonsense")
    assert "Did you mean /branches?" in told(chat, "/branche")
    assert "is not a command" in told(chat, "/")
    chat.ask("//flarp me", "I am")
    assert told(chat, "/show").startswith("1 > /flarp me\n")
    assert told(chat, "/?") == told(chat, "/help")
    assert "I am" in told(chat, "/retry")
    assert len(told(chat, "/branches").splitlines()) == 3
    assert "A new chat" in told(chat, "/new")


def test_exit_and_its_aliases(open_chat: OpenChat):
    for word in ("/exit", "/quit", "/bye"):
        chat = open_chat(wait=False)
        chat.shows("zephyr-tiny.")
        chat.send(f" {word} \r")
        assert chat.ended() == 0
