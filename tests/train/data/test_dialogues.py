"""The dialogue step as a whole: what it keeps, drops, splits and reports; the same run gives the same bytes."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zephyr_local.errors import InvalidInputError
from zephyr_local.train.data import dialogues
from zephyr_local.train.data.dialogues import DialogueSettings, prepare_dialogue_records, prepare_dialogues
from zephyr_local.train.data.records import Record, read_records

PLAIN = DialogueSettings(truecase=False, drop_feelings=False, drop_duplicates="none")


def chat(*texts: str) -> dict[str, Any]:
    return {"data": list(texts)}


def chats(count: int) -> list[dict[str, Any]]:
    return [{"id": str(number), **chat(f"Question {number}?", f"Answer {number}.")} for number in range(count)]


def write(path: Path, values: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def ids(path: Path) -> list[str]:
    return [record.value["id"] for record in read_records(path)]


def test_cleans_filters_and_reports(tmp_path: Path):
    source = write(
        tmp_path / "in.jsonl",
        [
            chat("hello. how does it work?", "It works."),
            chat("Hello. How  does it work?", "It WORKS."),
            chat("Why do cats purr?", "As an AI, I don't have feelings."),
            chat("Please: Write a poem about the sea and its many moods!", "No."),
            chat("Hi"),
            {"text": "Hi"},
            chat("Bye \ud800", "Goodbye."),
            {"conversations": [{"from": "gpt", "value": "..."}, *(
                {"from": name, "value": text} for name, text in (("human", "Good day"), ("gpt", "Good day to you"))
            )]},
        ],
    )  # fmt: skip
    exam = write(tmp_path / "exam.jsonl", [{"turns": ["Write a poem about the sea, and its many moods."]}])
    report = prepare_dialogues([source], [], tmp_path / "out.jsonl", None, DialogueSettings(against=(exam,)))
    written = [record.value for record in read_records(tmp_path / "out.jsonl")]
    assert [value["messages"][0]["content"] for value in written] == ["Hello. How does it work?", "Good day"]
    assert [value["source"] for value in written] == ["ultrachat", "sharegpt"]
    assert (report.n_read, report.n_kept) == (8, 2)
    assert report.dropped == {
        dialogues.SAME: 1,
        dialogues.FEELINGS: 1,
        dialogues.CONTAMINATED: 1,
        "no assistant turn": 1,
        "not recognised as a dialogue": 1,
        "half a surrogate pair, which is no Unicode text": 1,
    }
    assert report.changed[dialogues.TRUECASED] == 1
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved == json.loads(json.dumps(report.as_json()))
    assert saved["contaminated"] == [
        {"where": "in.jsonl:4", "id": "in.jsonl:4", "prompt": "exam.jsonl:1", "how": "contained"}
    ]
    assert saved["splits"]["train"]["formats"] == {"sharegpt": 1, "ultrachat": 1}
    assert saved["splits"]["train"]["turns"] == 4
    assert DialogueSettings.parse(saved["settings"]) == DialogueSettings(against=(exam,))


def test_without_cleaning_texts_stay_as_they_are(tmp_path: Path):
    values = [
        chat("hello. how are you?", "I don't have feelings."),
        chat("hello. how are you?", "I don't have feelings."),
    ]
    report = prepare_dialogue_records(_records(values), None, tmp_path / "out.jsonl", None, PLAIN)
    assert (report.n_kept, report.dropped, report.changed) == (2, {}, {})
    assert not (tmp_path / "report.json").exists()  # the caller's to write


def _records(values: list[dict[str, Any]]) -> Iterator[Record]:
    return (Record(f"made:{number}", value) for number, value in enumerate(values, 1))


@pytest.mark.parametrize("held_out", [0.2, 40])
def test_the_split_is_by_what_is_said_and_not_by_order(tmp_path: Path, held_out: float):
    values = chats(200)
    values += [{"id": f"again {value['id']}", **chat(value["data"][0].upper(), "Another answer")} for value in values]
    settings = DialogueSettings(truecase=False, held_out=held_out)
    sides = []
    for order in range(3):
        random.Random(order).shuffle(values)
        train, test = tmp_path / f"{order}.train.jsonl", tmp_path / f"{order}.test.jsonl"
        prepare_dialogue_records(_records(values), None, train, test, settings)
        sides.append((sorted(ids(train)), sorted(ids(test))))
    assert sides[0] == sides[1] == sides[2]
    train_ids, test_ids = sides[0]
    assert len(train_ids) + len(test_ids) == 400
    assert {name.removeprefix("again ") for name in train_ids}.isdisjoint(n.removeprefix("again ") for n in test_ids)
    assert (len(test_ids) == 40) if held_out == 40 else 50 <= len(test_ids) <= 110
    other = DialogueSettings(truecase=False, held_out=held_out, seed=1)
    prepare_dialogue_records(_records(values), None, tmp_path / "o.jsonl", tmp_path / "t.jsonl", other)
    assert sorted(ids(tmp_path / "t.jsonl")) != test_ids


def test_one_more_dialogue_moves_no_other(tmp_path: Path):
    settings = DialogueSettings(held_out=0.2)
    for count in (100, 101):
        outputs = tmp_path / f"{count}.jsonl", tmp_path / f"{count}.test.jsonl"
        prepare_dialogue_records(_records(chats(count)), None, *outputs, settings)
    assert len(set(ids(tmp_path / "100.test.jsonl")) ^ set(ids(tmp_path / "101.test.jsonl"))) <= 1


def test_train_asks_nothing_that_the_test_inputs_ask(tmp_path: Path):
    test = [chat("question 3?", "Something else."), chat("A new one?", "Yes.")]
    report = prepare_dialogue_records(
        _records(chats(5)), _records(test), tmp_path / "train.jsonl", tmp_path / "test.jsonl", PLAIN
    )
    assert ids(tmp_path / "train.jsonl") == ["0", "1", "2", "4"]
    assert report.dropped == {dialogues.IN_BOTH: 1}
    assert len(ids(tmp_path / "test.jsonl")) == 2


def test_near_duplicates_and_prompts(tmp_path: Path):
    text = " ".join(f"word{number}" for number in range(100))
    values = [chat("Tell me", text), chat("Tell me", text + " more"), chat("Tell me!", "No"), chat("tell ME", "Never")]
    kept = {}
    for name, settings in {
        "exact": DialogueSettings(),
        "near": DialogueSettings(drop_duplicates="near"),
        "prompt": DialogueSettings(duplicates_by="prompt"),
    }.items():
        kept[name] = prepare_dialogue_records(_records(values), None, tmp_path / "o.jsonl", None, settings).n_kept
    assert kept == {"exact": 4, "near": 3, "prompt": 2}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("held_out", [0.1, 30])
def test_the_same_run_gives_the_same_bytes(tmp_path: Path, suffix: str, held_out: float):
    source = write(tmp_path / "in.jsonl", [*chats(300), chat("hello. how is it?", "Fine."), chat("Hi")])
    settings = DialogueSettings(drop_duplicates="near", held_out=held_out)
    files = []
    for name in ("a", "b"):
        folder = tmp_path / name
        prepare_dialogues([source], [], folder / f"train{suffix}", folder / f"test{suffix}", settings)
        files.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert files[0] == files[1]
    assert sorted(files[0]) == sorted([f"train{suffix}", f"test{suffix}", "report.json"])


def test_its_output_is_its_own_input(tmp_path: Path):
    source = write(tmp_path / "in.jsonl", [chat("hello. how is it? i ask", "Fine."), *chats(20)])
    prepare_dialogues([source], [], tmp_path / "1" / "o.jsonl", None, DialogueSettings())
    report = prepare_dialogues([tmp_path / "1" / "o.jsonl"], [], tmp_path / "2" / "o.jsonl", None, DialogueSettings())
    assert (tmp_path / "1" / "o.jsonl").read_bytes() == (tmp_path / "2" / "o.jsonl").read_bytes()
    assert (report.dropped, report.changed) == ({}, {})


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([], "holds no record"),
        ([{"text": "Hi"}], "no record of .*in.jsonl is a dialogue.*ultrachat, alpaca"),
        ([chat("Hi")], "no dialogue is left to train on.*1 no assistant turn"),
    ],
)
def test_refuses_an_input_without_dialogues(tmp_path: Path, values: list[dict[str, Any]], says: str):
    source = write(tmp_path / "in.jsonl", values)
    out = tmp_path / "out"
    with pytest.raises(InvalidInputError, match=says):
        prepare_dialogues([source], [], out / "o.jsonl", None, DialogueSettings())
    assert list(out.iterdir()) == []


def test_a_failure_leaves_the_older_files(tmp_path: Path):
    source = write(tmp_path / "in.jsonl", chats(3))
    prepare_dialogues([source], [], tmp_path / "out" / "o.jsonl", None, DialogueSettings())
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (tmp_path / "array.json").write_text("[{broken")
    with pytest.raises(InvalidInputError, match=r"array.json is not JSON"):
        prepare_dialogues([source, tmp_path / "array.json"], [], tmp_path / "out" / "o.jsonl", None, DialogueSettings())
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_damaged_lines_are_dropped_and_counted(tmp_path: Path):
    source = write(tmp_path / "in.jsonl", chats(3))
    source.write_text(source.read_text() + '{"messages": [broken\n[1]\n' + source.read_text()[:40])  # cut in the last
    report = prepare_dialogues([source], [], tmp_path / "o.jsonl", None, DialogueSettings())
    assert (report.n_read, report.n_kept) == (6, 3)
    assert report.dropped == {"not JSON": 2, "no JSON object": 1}
    assert report.examples["not JSON"][0].startswith("in.jsonl:4: Expecting value at column 15")


def test_a_file_of_damage_alone_is_refused(tmp_path: Path):
    (tmp_path / "in.jsonl").write_text("hello\n")
    with pytest.raises(
        InvalidInputError, match=r"holds no record \(in.jsonl:1 is not JSON: Expecting value at column 1"
    ):
        prepare_dialogues([tmp_path / "in.jsonl"], [], tmp_path / "o.jsonl", None, DialogueSettings())


def test_refuses_a_test_split_without_dialogues(tmp_path: Path):
    with pytest.raises(InvalidInputError, match="left to test on"):
        prepare_dialogue_records(
            _records(chats(3)), None, tmp_path / "a.jsonl", tmp_path / "b.jsonl", DialogueSettings(held_out=1e-9)
        )
    assert list(tmp_path.iterdir()) == []


def test_refuses_files_that_are_in_each_others_way(tmp_path: Path):
    source = write(tmp_path / "in.jsonl", chats(3))
    other = tmp_path / "out.jsonl"
    with pytest.raises(InvalidInputError, match="both input and output"):
        prepare_dialogues([source], [], source, None, PLAIN)
    with pytest.raises(InvalidInputError, match="twice"):
        prepare_dialogues([source], [], other, tmp_path / "." / "out.jsonl", PLAIN)
    with pytest.raises(InvalidInputError, match="no file for them"):
        prepare_dialogues([source], [source], other, None, PLAIN)
    with pytest.raises(InvalidInputError, match="no input"):
        prepare_dialogues([], [], other, None, PLAIN)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"truecas": True}, "Did you mean truecase"),
        ({"zzz": 1}, "Settings are format"),
        ({"truecase": 1}, "truecase is 1"),
        ({"drop_duplicates": "some"}, "Use one of none, exact, near"),
        ({"drop_duplicates": True}, "Use one of none, exact, near"),
        ({"drop_duplicates": ["exact"]}, "Use one of none, exact, near"),
        ({"held_out": 0}, "held_out is 0"),
        ({"held_out": 0.7}, "held_out is 0.7"),
        ({"held_out": 1.5}, "held_out is 1.5"),
        ({"held_out": True}, "held_out is True"),
        ({"held_out": float("nan")}, "held_out is nan"),
        ({"held_out": float("inf")}, "held_out is inf"),
        ({"near_threshold": 1.1}, "near_threshold"),
        ({"near_threshold": 0}, "near_threshold"),
        ({"min_run_share": "0.5"}, "min_run_share"),
        ({"max_characters": 0}, "max_characters"),
        ({"run_words": 1}, "run_words"),
        ({"seed": -1}, "seed"),
        ({"format": "oasst"}, "no dialogue format"),
        ({"against": 3}, "against is 3"),
        ({"against": [3]}, "against is"),
        ({3: 3}, "no dialogue setting 3"),
    ],
)
def test_settings_refuse_what_they_do_not_know(values: dict[Any, Any], says: str):
    with pytest.raises(InvalidInputError, match=says):
        DialogueSettings.parse(values)


def test_settings_of_a_recipe():
    settings = DialogueSettings.parse(
        {"drop_duplicates": False, "against": "exam.txt", "held_out": 200}, Path("folder")
    )
    assert settings.drop_duplicates == "none"
    assert settings.against == (Path("folder/exam.txt"),)
    assert DialogueSettings.parse({}) == DialogueSettings()


def test_tells_how_far_it_is(tmp_path: Path):
    told: list[int] = []
    prepare_dialogue_records(_records(chats(2500)), None, tmp_path / "o.jsonl", None, PLAIN, told.append)
    assert told == [1000, 2000, 2500]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_file_name_may_be_any_bytes(tmp_path: Path):
    source = write(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jsonl")), [chat("Hi", "Hello"), chat("Hi")])
    prepare_dialogues([source], [], tmp_path / "o.jsonl", None, DialogueSettings())
    assert ids(tmp_path / "o.jsonl") == ["?.jsonl:1"]
    assert "?.jsonl:2" in (tmp_path / "report.json").read_text()
