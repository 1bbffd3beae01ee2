"""The context in sight and what fills it; settings, the system prompt and the model of a terminal chat."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.repl.terminal_driver import Terminal
from tests.scripted_model import ScriptedModel
from zephyr_local import Zephyr
from zephyr_local.chat import Chat
from zephyr_local.chat_types import Message
from zephyr_local.repl.sampling_values import NAMES, range_text
from zephyr_local.settings import EngineSettings
from zephyr_local.transcripts.store import ChatStore

OpenChat = Callable[..., Terminal]
GREEDY = ("--temperature", "0")
FRANCE, JAPAN = (f"What is the capital of {country}?" for country in ("France", "Japan"))
DROPPED = re.compile(r"\[(\d+) turns are no longer shown to the model: (\d+) tokens became (\d+)([^\]]*)\]")

VALUES = {
    "temperature": "0.25",
    "top_k": "7",
    "top_p": "0.125",
    "min_p": "0.0123456789",
    "repeat_penalty": "1.1",
    "seed": "4294967294",
    "max_tokens": "33",
    "stop": '["END", "]"]',
    "typical_p": "0.9",
    "repeat_last_n": "0",
    "frequency_penalty": "-0.5",
    "presence_penalty": "0.5",
    "mirostat": "0",
    "mirostat_tau": "4.5",
    "mirostat_eta": "0.2",
    "dry_multiplier": "0.8",
    "dry_base": "2",
    "dry_allowed_length": "3",
    "dry_penalty_last_n": "100",
    "dry_sequence_breakers": '["\\n", "."]',
    "xtc_probability": "0.01",
    "xtc_threshold": "0.2",
    "logit_bias": "5:-inf 70:1.5",
    "logprobs": "2",
}
"""A legal value for every field of Sampling, as it is shown again."""


def told(chat: Terminal, line: str) -> str:
    """What a line brings onto the screen, up to the next prompt."""
    text = chat.ask(line)
    _, found, after = text.rpartition(f"> {line}\n")
    assert found, text
    return after.rpartition("\n")[0]


def loaded(chat: Terminal) -> Terminal:
    """The chat, once its model is loaded."""
    chat.wait(lambda text: re.fullmatch(r"\d+/\d+ >", text.splitlines()[-1]) is not None)
    return chat


def used(chat: Terminal) -> int:
    return int(chat.last_line.partition("/")[0])


def colour(chat: Terminal) -> str:
    """Of the count in the prompt."""
    (place,) = [y for y, line in enumerate(chat.screen.display) if line.rstrip() == chat.last_line]
    found = {chat.screen.buffer[place][x].fg for x in range(len(chat.last_line) - 1)}
    assert len(found) == 1, found
    return found.pop()


def stored(home: Path, chat: int = 1) -> Chat:
    with ChatStore(home / "data" / "zephyr-local" / "chats.db") as store:
        return Chat.of(ScriptedModel(), store.record(chat))


# --- how full it is ---


def test_the_count_turns_yellow_at_four_fifths_of_the_context_and_red_where_it_is_full(open_chat: OpenChat):
    chat = loaded(open_chat("--n-ctx", "256"))
    seen = {}
    for words in (0, 150, 170, 175, 180, 185, 190, 195, 200, 300):
        chat.ask(f"/system {'word ' * words}" if words else '/system ""')
        seen[used(chat)] = colour(chat)
        chat.screen.reset()
    below, near = (tokens for tokens in seen if tokens < 0.8 * 256), (t for t in seen if 0.8 * 256 <= t < 256)
    assert {seen[tokens] for tokens in below} == {"default"}
    assert {seen[tokens] for tokens in near} == {"brown"}, "as a terminal's yellow is called"
    assert seen[max(seen)] == "red"
    assert max(tokens for tokens in seen if tokens < 0.8 * 256) > 190, "just below, there is no colour"


@pytest.mark.parametrize(("flags", "environment"), [((), {"NO_COLOR": "1"}), (("--theme", "none"), {})])
def test_there_is_no_colour_where_none_is_wanted(
    open_chat: OpenChat, flags: tuple[str, ...], environment: dict[str, str]
):
    chat = loaded(open_chat("--n-ctx", "256", *flags, environment=environment))
    chat.ask(f"/system {'word ' * 200}")
    assert used(chat) >= 0.8 * 256
    chat.ask("/nonsense", "error:")
    chat.ask(FRANCE)
    chat.send("/set t\t")
    chat.shows("temperature")
    chat.control("c")
    chat.ask("/help")
    found = {int(number or 0) for codes in re.findall(rb"\x1b\[([\d;]*)m", chat.raw) for number in codes.split(b";")}
    assert not found & {*range(30, 39), *range(40, 49), *range(90, 108)}, found


def test_a_narrow_terminal_shows_no_count(open_chat: OpenChat):
    chat = open_chat("--plain", columns=29)
    chat.ask("Hello", "Hello!")
    assert chat.last_line == ">"


# --- when it is full ---


def test_stop_refuses_the_question_and_gives_it_back(open_chat: OpenChat):
    chat = open_chat("--n-ctx", "256")
    chat.ask(FRANCE, "Paris")
    before = chat.last_line
    chat.send("word " * 250 + "END\r")
    chat.wait(lambda text: "error:" in text and text.endswith("END"))
    assert "/undo, /overflow drop-oldest or /clear" in chat.text.replace("\n", " ")
    chat.control("c")
    chat.prompt()
    assert chat.last_line == before
    assert "2 turns" in told(chat, "/stats")


def test_drop_oldest_tells_what_is_dropped_and_keeps_the_system_prompt(open_chat: OpenChat, tmp_path: Path):
    chat = open_chat("--n-ctx", "256", "--overflow", "drop-oldest", "--system", "You are kind.")
    asked = 0
    while not (drop := DROPPED.search(chat.text.replace("\n", " "))):
        chat.ask(FRANCE)
        asked += 1
        assert asked < 20
    turns, before, after = map(int, drop.groups()[:3])
    assert drop.group(4) == ""
    assert before > 256 - 64
    assert after <= 128, "a good deal at once, not a turn with each question"
    kept = stored(tmp_path / "home")
    assert len(kept.turns) == 2 * asked, "the chat still has them"
    assert kept.sent == (Message("system", "You are kind."), *kept.turns[turns:])
    with Zephyr(None, EngineSettings(n_ctx=256)) as zephyr:
        assert zephyr.count_tokens(kept.sent) == used(chat)
        assert zephyr.count_tokens(kept.sent[:-1]) == after, "what the answer was given to"
    assert f"dropped  {turns} of {2 * asked} turns are not shown to the model" in told(chat, "/stats")
    assert "when it is full: drop-oldest" in chat.text
    assert f"last     [prompt {after} tokens" in chat.text
    chat.control("d")
    assert chat.ended() == 0
    again = open_chat("--continue", "--n-ctx", "256")
    loaded(again)
    assert f"dropped  {turns} of" in told(again, "/stats")


def test_summarise_tells_what_stands_in_their_place(open_chat: OpenChat, tmp_path: Path):
    chat = open_chat("--n-ctx", "256", "--overflow", "summarise", "--system", "You are kind.")
    asked = 0
    while not (drop := DROPPED.search(chat.text.replace("\n", " "))):
        chat.ask(FRANCE)
        asked += 1
        assert asked < 20
    assert drop.group(4) == "; a summary stands in their place"
    (system, *turns) = stored(tmp_path / "home").sent
    assert system.content.startswith("You are kind.\n\nSummary of the conversation so far: ")
    assert len(turns) == 2 * asked - int(drop.group(1))


def test_overflow_may_change_in_a_chat(open_chat: OpenChat):
    chat = open_chat("--n-ctx", "256")
    assert told(chat, "/overflow") == "When the context is full: stop."
    assert "Use one of stop, drop-oldest, summarise" in told(chat, "/overflow never")
    for _ in range(2):
        chat.ask("word " * 50 + "END")
    question = "word " * 100 + "END"
    chat.send(f"{question}\r")
    chat.wait(lambda text: text.count("error:") == 2 and text.endswith("END"))
    chat.control("c")
    chat.prompt()
    assert told(chat, "/overflow drop-oldest") == "When the context is full: drop-oldest."
    chat.send(f"{question}\r")
    chat.wait(lambda text: DROPPED.search(text) is not None)


# --- the system prompt and settings ---


def test_system_is_set_shown_and_removed(open_chat: OpenChat, tmp_path: Path):
    chat = loaded(open_chat())
    assert told(chat, "/system") == "There is no system prompt."
    assert told(chat, "/system You are  kind.") == "The system prompt: You are  kind."
    assert used(chat) > 5
    chat.ask("/clear")
    assert told(chat, "/system") == "The system prompt: You are  kind."
    chat.ask("Hello")
    assert stored(tmp_path / "home").system == "You are  kind."
    for remove in ('/system ""', "/system none"):
        assert told(chat, remove) == "There is no system prompt."
        assert stored(tmp_path / "home").system is None
        chat.ask("/system Something else.")


def test_every_field_of_sampling_can_be_set_and_stays_with_the_chat(open_chat: OpenChat):
    chat = open_chat(rows=60)
    for name in NAMES:
        assert told(chat, f"/set {name} {VALUES[name]}") == f"{name} is {VALUES[name]}."
    chat.ask(FRANCE, "log probability")
    chat.control("d")
    assert chat.ended() == 0
    again = open_chat("--continue", "--top-k", "9", rows=60)
    listed = told(again, "/set").splitlines()
    for name, line in zip(NAMES, listed, strict=False):
        value = "9" if name == "top_k" else VALUES[name]  # a flag goes before the chat's own
        assert re.fullmatch(rf"\*{name} +{re.escape(value)} +{re.escape(range_text(name))}", line)
    again.control("d")
    assert again.ended() == 0
    third = open_chat("--continue", "--top-k", "9", rows=60)
    third.ask("/set temperature 0.75")
    assert told(third, "/set top_k 11") == "top_k is 11."
    third.control("d")
    assert third.ended() == 0
    last = open_chat("--continue", rows=60)
    assert told(last, "/set top_k").startswith("top_k is 11 ")
    assert told(last, "/set temperature").startswith("temperature is 0.75 ")
    assert told(last, "/set seed").startswith("seed is 4294967294 ")


def test_set_shows_ranges_and_refuses_what_is_outside(open_chat: OpenChat):
    chat = open_chat(rows=60)
    listed = told(chat, "/set").splitlines()
    assert [line.split()[0] for line in listed[:-1]] == list(NAMES)
    assert not any(line.startswith("*") for line in listed[:-1])
    assert told(chat, "/set top-k") == "top_k is 50 (0 to 1048576)."
    assert told(chat, "/set top-k 3") == "top_k is 3."
    assert "*top_k" in told(chat, "/set")
    for line, reason in {
        "top_k -1": "top_k is -1, outside 0 to",
        "top_k 1.5": "Give a whole number, 0 to 1048576",
        "top_p nan": "top_p is nan, outside 0 to 1",
        "temperature hot": "Give a number, 0 to 100",
        "seed 4294967295": "seed is 4294967295, outside 0 to 4294967294",
        'stop ["a"': "stop is not JSON",
        "stop [1]": "stop",
        "logit_bias 5": "logit_bias has '5'. Give TOKEN:BIAS",
        "logit_bias 5:2000": "outside -1000",
        "tempature 1": "tempature is not a sampling setting. Did you mean temperature? /set lists them",
        "zzz": "zzz is not a sampling setting. /set lists them",
    }.items():
        assert reason in told(chat, f"/set {line}")
        assert "mistake" not in chat.text
    assert told(chat, "/set top_k default") == "top_k is 50."
    assert told(chat, "/set max_tokens 5") == "max_tokens is 5."
    assert told(chat, "/set max_tokens none") == "max_tokens is none."
    for name in ("stop", "logit_bias"):
        assert told(chat, f"/set {name} none") == f"{name} is none."


def test_max_tokens_takes_effect_at_once(open_chat: OpenChat, counting: str):
    chat = open_chat(counting, *GREEDY)
    chat.ask("/set max_tokens 7")
    assert re.search(r"w06\s+\[the answer was cut at max_tokens 7", told(chat, "Count"))
    assert "7 tokens" in told(chat, "/stats")


# --- the model ---


def test_model_goes_over_to_another_file_and_back(open_chat: OpenChat, counting: str, tmp_path: Path):
    (tmp_path / "my model.gguf").symlink_to(counting)
    chat = open_chat("--max-tokens", "30", cwd=tmp_path)
    chat.ask(FRANCE, "Paris")
    before = chat.last_line
    assert told(chat, "/model") == "The model is zephyr-tiny (bundled)."
    chat.ask("/model my model.gguf", "The model is zephyr counting, 4096 tokens of context.")
    assert chat.last_line.endswith("/4096 >")
    assert told(chat, "/model") == "The model is zephyr counting (my model.gguf)."
    chat.ask("/set temperature 0")
    assert "w00 w01" in told(chat, "Count")
    assert told(chat, "/show").startswith(f"1 > {FRANCE}\nThe capital of France is Paris.\n2 > Count\nw00")
    assert told(chat, "/chats").endswith("zephyr-tiny, zephyr counting")
    chat.ask("/undo")
    chat.ask("/model zephyr-tiny", "The model is zephyr-tiny, 1024 tokens of context.")
    assert chat.last_line == before


def test_an_empty_model_is_not_the_current_folder(open_chat: OpenChat):
    chat = open_chat()
    for name in ('""', "''"):
        assert "is empty" in chat.ask(f"/model {name}", "the model is still")
        chat.screen.reset()


def test_a_model_that_does_not_load_leaves_the_one_that_was_there(open_chat: OpenChat, tmp_path: Path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(1000))
    (tmp_path / "empty.gguf").write_bytes(b"")
    chat = open_chat(cwd=tmp_path)
    for asked in range(2):  # with no answer yet, and after one
        for name in ("nosuch.gguf", "broken.gguf", "empty.gguf", ".", "a" * 300):
            said = chat.ask(f"/model {name}", "model is still zephyr-tiny")
            assert "error:" in said
            chat.screen.reset()
        chat.ask(FRANCE, "The capital of France is Paris.")
        assert f"{2 * asked + 2} turns" in told(chat, "/stats")
        chat.screen.reset()


def test_a_template_that_was_given_is_kept_where_another_model_does_not_load(open_chat: OpenChat, tmp_path: Path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(1000))
    (tmp_path / "template").write_text("{% for m in messages %}{{ m['content'] }} {{ 'word ' * 99 }}{% endfor %}")
    chat = open_chat("--template", "template", "--max-tokens", "3", cwd=tmp_path)
    chat.ask("Hello")
    before = chat.last_line
    assert used(chat) > 150
    chat.ask("/model broken.gguf", "still")
    chat.ask("/undo")
    chat.ask("/redo")
    assert loaded(chat).last_line == before


def test_stats_tells_what_answers_cost(open_chat: OpenChat):
    chat = open_chat(columns=160)
    chat.wait(lambda text: text.endswith("0/1024 >"))
    assert told(chat, "/stats").splitlines() == [
        "model    zephyr-tiny (bundled)",
        "context  0 of 1024 tokens; when it is full: stop",
        "chat     0 turns, 0 branches, not saved",
        "answers  0 since the start, 0 tokens",
    ]
    chat.ask(FRANCE, "Paris")
    chat.ask("/regen")
    _, context, turns, answers, last = told(chat, "/stats").splitlines()
    assert context == f"context  {used(chat)} of 1024 tokens; when it is full: stop"
    assert turns == "chat     2 turns, 2 branches, saved as chat 1"
    assert re.fullmatch(r"answers  2 since the start, 16 tokens, \d+\.\d a second", answers)
    assert re.match(r"last     \[prompt \d+ tokens, \d+ cached, .*; answer 8 tokens, .*; stop\]", last)


# --- a store that fails ---


def test_a_store_that_fails_ends_nothing_and_catches_up(open_chat: OpenChat, tmp_path: Path):
    chat = open_chat()
    chat.ask(FRANCE, "Paris")
    path = tmp_path / "home" / "data" / "zephyr-local" / "chats.db"
    with sqlite3.connect(path) as broken:
        broken.execute("ALTER TABLE turns RENAME TO away")
    broken.close()
    for _ in range(2):
        chat.ask(JAPAN, "Tokyo")
    assert chat.text.count("The chat is not being saved:") == 1
    assert "6 turns" in told(chat, "/stats")
    chat.ask("/system You are kind.")
    chat.ask("/title Ours", "error:")
    with sqlite3.connect(path) as mended:
        mended.execute("ALTER TABLE away RENAME TO turns")
    mended.close()
    chat.ask("Hello", "The chat is saved again, all of it.")
    kept = stored(tmp_path / "home")
    assert [turn.content for turn in kept.turns[::2]] == [FRANCE, JAPAN, JAPAN, "Hello"]
    assert kept.system == "You are kind."


def test_a_chat_is_caught_up_with_when_it_is_left(open_chat: OpenChat, tmp_path: Path):
    path = tmp_path / "home" / "data" / "zephyr-local" / "chats.db"
    for leave in ("/exit", "/clear"):
        chat = open_chat()
        with sqlite3.connect(path) as broken:
            broken.execute("ALTER TABLE turns RENAME TO away")
        broken.close()
        chat.ask(FRANCE, "The chat is not being saved:")
        with sqlite3.connect(path) as mended:
            mended.execute("ALTER TABLE away RENAME TO turns")
        mended.close()
        chat.say(leave)
        chat.shows("The chat is saved again, all of it.")
    with ChatStore(path) as store:
        assert [summary.turns for summary in store.summaries()] == [2, 2]
