"""Prompts for feedback, from the records that people have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from zephyr_local.chat_types import Message
from zephyr_local.errors import InvalidInputError
from zephyr_local.train.data.records import Record
from zephyr_local.train.data.report import DataReport
from zephyr_local.train.feedback.prompts import prompt_key, read_prompts, read_ready_answers

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Who are you?"},
]


def read(*values: dict[str, Any]) -> tuple[list[Any], DataReport]:
    report = DataReport("feedback")
    return list(read_prompts([Record(f"p.jsonl:{n}", v) for n, v in enumerate(values, 1)], report)), report


def test_prompts_come_as_text_as_messages_and_as_dialogues():
    prompts, report = read(
        {"prompt": "What?"},
        {"instruction": "Add.", "input": "1 2", "source": "sums", "id": "s1"},
        {"prompt": CHAT},
        {"messages": [*CHAT, {"role": "assistant", "content": "A model."}], "dataset": "chats"},
    )
    assert [prompt.messages[-1].content for prompt in prompts] == ["What?", "Add.\n\n1 2", "Who are you?"]
    assert (prompts[1].id, prompts[1].source) == ("s1", "sums")
    assert prompts[2].instruction == "System: Be brief.\n\nUser: Hi\n\nAssistant: Hello.\n\nUser: Who are you?"
    assert report.dropped == {"a prompt that came before": 1}  # the dialogue asks what the chat asks
    assert (report.n_read, report.n_kept) == (4, 3)


def test_what_is_no_prompt_is_counted():
    prompts, report = read(
        {"prompt": ""}, {"text": "x"}, {"prompt": [{"role": "assistant", "content": "x"}]}, {"prompt": "ok"}
    )
    assert len(prompts) == 1
    assert sum(report.dropped.values()) == 3


def test_ready_answers_are_found_by_their_prompt(tmp_path: Path):
    path = tmp_path / "ready.jsonl"
    values = [
        {"instruction": "One?", "output": "1"},
        {"prompt": "Two? ", "response": "2"},
        {"messages": [*CHAT, {"role": "assistant", "content": "A model."}]},
    ]
    path.write_text("\n".join(map(json.dumps, values)))
    ready = read_ready_answers(path)
    assert ready[prompt_key([Message("user", "One?")])] == "1"
    assert ready[prompt_key([Message("user", "Two?")])] == "2"
    assert ready[prompt_key([Message(turn["role"], turn["content"]) for turn in CHAT])] == "A model."  # type: ignore[arg-type]


def test_a_ready_answer_without_one_is_told(tmp_path: Path):
    path = tmp_path / "ready.jsonl"
    path.write_text('{"instruction": "One?"}')
    with pytest.raises(InvalidInputError, match=r"ready.jsonl:1 is without an answer in output"):
        read_ready_answers(path)
