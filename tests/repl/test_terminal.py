"""The chat on a real pseudo-terminal: from the greeting to the exit, Ctrl+C, errors, what stays on the screen."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.repl.terminal_driver import Terminal

OpenChat = Callable[..., Terminal]
GREEDY = ("--temperature", "0", "--threads", "1")


def engine_of(chat: Terminal) -> int:
    """The process of the chat's engine."""
    children = Path(f"/proc/{chat.process.pid}/task").glob("*/children")
    found = [int(child) for file in children for child in file.read_text().split()]
    (engine,) = [pid for pid in found if b"engine" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return engine


def test_a_conversation_from_greeting_to_exit(open_chat: OpenChat):
    chat = open_chat()
    assert "zephyr-tiny" in chat.text
    assert "/help" in chat.text
    chat.ask("What is the capital of France?", "The capital of France is Paris.")
    chat.ask("/help", "/regen")
    chat.ask("/nonsense", "/nonsense is not a command")
    chat.ask("/clear", "A new chat")
    chat.say("/exit")
    assert chat.ended() == 0
    assert "Traceback" not in chat.text


def test_the_prompt_stands_before_the_model_is_loaded_and_then_shows_the_context(open_chat: OpenChat):
    chat = open_chat()
    chat.wait(lambda text: text.splitlines()[-1] == "0/1024 >")
    text = chat.ask("What is the capital of France?", "Paris")
    used = int(text.splitlines()[-1].partition("/")[0])
    assert 20 < used < 40
    chat.ask("and of Japan?", "Tokyo")
    assert int(chat.last_line.partition("/")[0]) > used
    chat.ask("/undo", "Back to before")
    assert chat.last_line == f"{used}/1024 >"


def test_a_message_may_be_sent_while_the_model_loads(open_chat: OpenChat):
    chat = open_chat(wait=False)
    chat.shows("zephyr-tiny")
    chat.send("What is the capital of France?\r")
    chat.prompt(answers="The capital of France is Paris.")


def test_a_model_that_is_not_there_is_told_before_the_prompt(open_chat: OpenChat):
    chat = open_chat("nosuch.gguf", wait=False)
    assert chat.ended() == 3
    assert "there is no file nosuch.gguf" in chat.text
    assert ">" not in chat.last_line


def test_a_model_that_does_not_load_ends_the_chat_that_waits_for_it(open_chat: OpenChat, tmp_path: Path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(1000))
    chat = open_chat(str(path), wait=False)
    assert chat.ended() == 1
    assert "error:" in chat.text
    assert "Traceback" not in chat.text


def test_ctrl_d_leaves_and_ctrl_c_at_the_prompt_asks_twice(open_chat: OpenChat):
    chat = open_chat()
    chat.control("c")
    chat.shows("Ctrl+C again")
    chat.control("d")
    assert chat.ended() == 0
    again = open_chat()
    again.control("c")
    again.shows("Ctrl+C again")
    again.control("c")
    assert again.ended() == 0


def test_ctrl_c_clears_a_line_that_was_begun(open_chat: OpenChat):
    chat = open_chat()
    chat.send("half a question")
    chat.shows("half a question")
    chat.control("c")
    chat.wait(lambda text: "half" not in text)
    chat.control("c")
    chat.shows("Ctrl+C again")


def test_ctrl_c_stops_an_answer_and_keeps_what_came(open_chat: OpenChat, counting: str):
    chat = open_chat(counting, *GREEDY)
    for turns in (2, 4):
        chat.say("Count")
        chat.shows("w10")
        chat.control("c")
        chat.shows("[stopped;")
        chat.prompt()
        chat.ask("/stats", f"{turns} turns")
        chat.screen.reset()
    chat.control("d")
    assert chat.ended() == 0


def test_ctrl_c_while_the_chat_is_read_gives_the_question_back(open_chat: OpenChat, counting: str):
    chat = open_chat(counting, *GREEDY, "--n-batch", "1")
    chat.send("word " * 500 + "END\r")  # some 2,500 tokens, six milliseconds each
    chat.shows("Reading [")
    chat.control("c")
    chat.shows("[stopped before the answer began]")
    chat.wait(lambda text: text.endswith("END"))
    assert "Traceback" not in chat.text
    chat.control("c")
    chat.prompt()
    chat.ask("/stats", "0 turns")


@pytest.mark.skipif(not Path("/proc").exists(), reason="the engine's process is found in /proc")
def test_an_engine_that_is_killed_ends_neither_the_chat_nor_a_turn(open_chat: OpenChat, counting: str):
    chat = open_chat(counting, *GREEDY)
    chat.say("Count")
    chat.shows("w30")
    os.kill(engine_of(chat), signal.SIGKILL)
    chat.shows("the engine process was ended by SIGKILL")
    chat.prompt()
    chat.ask("/stats", "2 turns")
    chat.screen.reset()
    chat.say("And more")
    chat.shows("w10")
    chat.control("c")
    chat.shows("[stopped;")
    chat.prompt()
    chat.ask("/stats", "4 turns")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such limit")
def test_a_lack_of_memory_ends_neither_the_chat_nor_a_turn(open_chat: OpenChat, counting: str):
    chat = open_chat("--n-ctx", "65536", most_memory_bytes=1_500_000_000)
    chat.ask("What is the capital of France?", "Paris")
    # Its check starts a thread for each of 579 tensors, and its context of 64 layers takes a gigabyte.
    chat.ask(f"/model {counting}", "The model is still zephyr-tiny")
    assert "memory" in chat.text
    chat.ask("and of Japan?", "Tokyo")
    chat.ask("/stats", "4 turns")


def test_timings_and_errors_leave_the_chat_alive(open_chat: OpenChat):
    chat = open_chat("--verbose", "--n-ctx", "256")
    chat.send("word " * 500 + "\r")
    chat.wait(lambda text: "error:" in text and "256" in text)
    chat.wait(lambda text: text.endswith("word word"), timeout_s=20)  # the question stands at the prompt again
    chat.control("c")
    chat.prompt()
    chat.ask("Hello", "first token after")
    chat.control("d")
    assert chat.ended() == 0


def test_what_is_typed_during_an_answer_waits_for_the_prompt(open_chat: OpenChat, counting: str):
    chat = open_chat(counting, *GREEDY, "--max-tokens", "90")
    chat.say("Count")
    chat.shows("w10")
    chat.send("/title Typed ahead\rand more")
    chat.wait(lambda text: text.endswith("> and more"))
    assert chat.text.count("Typed ahead") == 2, "it is not echoed into the answer, and Enter sent it"
    assert "w88 w89\n" in chat.text.replace("\n", " ").replace("w89 ", "w89\n")


def test_a_lost_terminal_leaves_no_process(open_chat: OpenChat, counting: str):
    chat = open_chat(counting, *GREEDY)
    chat.say("Count")
    chat.shows("w10")
    chat.process.kill(signal.SIGHUP)
    deadline = time.monotonic() + 20
    while chat.process.isalive() and time.monotonic() < deadline:
        chat.feed()
    assert not chat.process.isalive()
