"""Examinations' prompts are read from their files and found in users' turns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zephyr_local.errors import InvalidInputError
from zephyr_local.train.data.contamination import OverlapLimits, Prompt, PromptIndex, read_prompts

LONG = " ".join(f"word{number}" for number in range(60))
MIDDLE = "Write a poem about the sea and its many moods"


def index(*prompts: str, **limits: float) -> PromptIndex:
    return PromptIndex([Prompt(f"p:{number}", text) for number, text in enumerate(prompts, 1)], OverlapLimits(**limits))


def how(found_in: str, *prompts: str, **limits: float) -> str | None:
    overlap = index(*prompts, **limits).find(["Hello there", found_in])
    return None if overlap is None else overlap.how


def test_finds_the_same_prompt_in_normal_form():
    assert how("  write a POEM about the sea, and its many moods!", MIDDLE) == "the same"
    assert how("Hi!", "hi") == "the same"


def test_finds_a_prompt_inside_a_turn_where_it_is_long_enough():
    assert how(f"Please: {MIDDLE}. Thanks!", MIDDLE) == "contained"
    assert how("Well, write a poem, please", "Write a poem") is None
    assert how("Well, write a poem, please", "Write a poem", min_contained_words=3) == "contained"
    assert how(f"So: {LONG} and more", LONG) == "contained"
    assert how(MIDDLE.replace("moods", "moodswings"), MIDDLE) is None


def test_long_prompts_overlap_by_their_share_of_runs():
    parts = LONG.split()
    assert how(" ".join(parts[:40]), LONG) == "overlapping"  # 28 of 48 runs
    assert how(" ".join(parts[:30]), LONG) is None  # 18 of 48
    assert how(" ".join(parts[:13]), LONG, min_run_share=0) == "overlapping"
    assert how(" ".join(parts[:12]), LONG, min_run_share=0) is None
    assert how(" ".join(parts[:59]), LONG, min_run_share=1) is None
    assert how(" ".join(parts[:8]), LONG, min_run_share=0, run_words=5) == "overlapping"


def test_names_the_prompt():
    found = index("Hello you", MIDDLE).find([f"{MIDDLE} please"])
    assert found is not None
    assert found.prompt == Prompt("p:2", MIDDLE)


def test_finds_nothing_in_nothing():
    assert how("", MIDDLE) is None
    assert how("?!", "...", MIDDLE) is None
    assert len(index("...", "", "a", "A!")) == 1


@pytest.mark.parametrize(
    ("record", "texts"),
    [
        ({"question_id": 81, "turns": ["One?", "Two?"], "prompt": "no"}, ["One?", "Two?"]),
        ({"prompt": "One?"}, ["One?"]),
        ({"prompt": [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "no"}]}, ["One?"]),
        ({"instruction": "One?", "output": "no"}, ["One?"]),
        ({"instruction": "Add", "input": "1, 2"}, ["Add\n\n1, 2"]),
        ({"question": "One?"}, ["One?"]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "One?"}]}]}, ["One?"]),
        ({"prompt": None, "question": "One?"}, ["One?"]),
        ({"prompt": 3, "text": "no"}, []),
    ],
)
def test_reads_prompts_of_records(tmp_path: Path, record: dict[str, object], texts: list[str]):
    path = tmp_path / "exam.jsonl"
    path.write_text(json.dumps(record) + "\n" + json.dumps({"prompt": "Last?"}) + "\n")
    assert [prompt.text for prompt in read_prompts(path)] == [*texts, "Last?"]


def test_reads_text_a_line(tmp_path: Path):
    path = tmp_path / "exam.txt"
    path.write_bytes("\ufeffOne?\r\n\nTwo\u2028lines?\n".encode())
    assert [(prompt.where, prompt.text.strip()) for prompt in read_prompts(path)] == [
        ("exam.txt:1", "One?"),
        ("exam.txt:3", "Two\u2028lines?"),
    ]


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.txt", b"\n \n", "there is no prompt"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n', "there is no prompt"),
        ("a.jsonl", b"no\n", "not JSON"),
        ("a.csv", b"a,b\n", "is none of"),
    ],
)
def test_refuses_a_file_without_prompts(tmp_path: Path, name: str, data: bytes, says: str):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InvalidInputError, match=says):
        list(read_prompts(tmp_path / name))


@pytest.mark.parametrize("name", ["missing.txt", "missing.jsonl"])
def test_refuses_a_file_that_is_not_there(tmp_path: Path, name: str):
    with pytest.raises(InvalidInputError, match=r"missing"):
        list(read_prompts(tmp_path / name))
