"""The whole step: files in, pairs and a report out."""

from __future__ import annotations

import json

import pytest

from zephyr_local.errors import InvalidInputError, TemplateError
from zephyr_local.train.data.preferences import (
    DUPLICATE,
    IN_BOTH,
    PreferenceSettings,
    prepare_preference_records,
    prepare_preferences,
)
from zephyr_local.train.data.records import Record, read_records


def pair(prompt, chosen="yes indeed", rejected="no", **more):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def feedback(instruction, *scores, source="flan"):
    completions = [
        {"response": f"answer {n} of {instruction}", "annotations": {"honesty": {"Rating": str(score)}}}
        for n, score in enumerate(scores)
    ]
    return {"instruction": instruction, "completions": completions, "source": source}


def write(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def asked(path):
    return [record.value["prompt"][-1]["content"] for record in read_records(path)]


def count_words(messages):
    """A stand-in for a tokenizer: a word a token, and one for each turn's marks and for an answer's beginning."""
    ask = messages[-1].role != "assistant"
    return sum(len(message.content.split()) + 1 for message in messages) + ask


def run(tmp_path, train, test=(), count_tokens=None, **settings):
    makes_test = test or settings.get("held_out")
    inputs = [write(tmp_path / "train-in.jsonl", train)]
    test_inputs = [write(tmp_path / "test-in.jsonl", test)] if test else []
    test_out = tmp_path / "test.jsonl" if makes_test else None
    return prepare_preferences(
        inputs, test_inputs, tmp_path / "train.jsonl", test_out, PreferenceSettings(**settings), count_tokens
    )


def test_pairs_are_written_and_reported(tmp_path):
    report = run(tmp_path, [feedback("One?", 5, 1), pair("Two?", id="two"), feedback("Three?", 2, 2)])

    rows = [record.value for record in read_records(tmp_path / "train.jsonl")]
    assert rows[0] == {
        "prompt": [{"role": "user", "content": "One?"}],
        "chosen": [{"role": "assistant", "content": "answer 0 of One?"}],
        "rejected": [{"role": "assistant", "content": "answer 1 of One?"}],
        "score_chosen": 5.0,
        "score_rejected": 1.0,
        "id": rows[0]["id"],
        "source": "flan",
    }
    assert (rows[1]["id"], rows[1]["source"], rows[1]["score_chosen"]) == ("two", "train-in.jsonl", None)
    assert (report.n_read, report.n_kept, report.dropped) == (3, 2, {"a tie": 1})
    assert report.examples["a tie"] == ["train-in.jsonl:3: Three?"]
    assert report.facts["formats"] == {"pairs": 1, "ultrafeedback": 2}
    assert report.changed == {"ratings that are not numbers left out": 1}
    assert report.facts["answers_left_out"] == {"ratings that are not numbers left out": 12}


def test_the_order_of_records_changes_no_pair(tmp_path):
    records = [feedback(f"Question {n}?", 5, 1, 2, 3) for n in range(40)]
    run(tmp_path, records)
    forwards = {record.value["id"]: record.value for record in read_records(tmp_path / "train.jsonl")}
    run(tmp_path, records[::-1])
    backwards = {record.value["id"]: record.value for record in read_records(tmp_path / "train.jsonl")}

    assert forwards == backwards
    assert len(forwards) == 40
    assert len({row["score_rejected"] for row in forwards.values()}) == 3


def test_same_seed_same_bytes(tmp_path):
    records = [feedback(f"Question {n}?", 5, 1, 2, 3) for n in range(40)]
    written = []
    for seed in (3, 3, 4):
        report = run(tmp_path, records, seed=seed, held_out=0.2)
        report.write(tmp_path / "report.json")
        names = ("train.jsonl", "test.jsonl", "report.json")
        written.append([(tmp_path / name).read_bytes() for name in names])

    assert written[0] == written[1]
    assert written[0][0] != written[2][0]


class TestSplits:
    def test_a_prompt_of_the_test_split_is_not_trained_on(self, tmp_path):
        train = [pair("What  is\tTHIS?"), pair("Another?"), pair("Ｗhat is this?", chosen="x y")]
        report = run(tmp_path, train, test=[pair("what is this?")])

        assert asked(tmp_path / "train.jsonl") == ["Another?"]
        assert asked(tmp_path / "test.jsonl") == ["what is this?"]
        assert report.dropped == {IN_BOTH: 2}

    def test_a_system_turn_makes_no_other_prompt(self, tmp_path):
        report = run(tmp_path, [pair("This?", system="Be brief."), pair("That?")], test=[pair("This?")])

        assert report.dropped == {IN_BOTH: 1}

    def test_a_prompt_that_the_test_split_dropped_may_be_trained_on(self, tmp_path):
        report = run(tmp_path, [pair("This?")], test=[pair("This?", rejected="yes indeed"), pair("That?")])

        assert asked(tmp_path / "train.jsonl") == ["This?"]
        assert report.n_kept == 2

    def test_held_out_prompts_are_in_one_split_whatever_the_order_and_seed(self, tmp_path):
        train = [pair(f"Question {n}?") for n in range(400)]
        train += [pair(f"QUESTION {n}?", chosen="another answer") for n in range(400)]
        run(tmp_path, train, held_out=0.1)
        held_out = {text.casefold() for text in asked(tmp_path / "test.jsonl")}
        kept = {text.casefold() for text in asked(tmp_path / "train.jsonl")}
        run(tmp_path, train[::-1], held_out=0.1, seed=9)

        assert 20 < len(held_out) < 60
        assert not held_out & kept
        assert len(held_out | kept) == 400
        assert {text.casefold() for text in asked(tmp_path / "test.jsonl")} == held_out

    @pytest.mark.parametrize(
        ("test_inputs", "test_out", "held_out", "problem"),
        [
            (["t"], "test.jsonl", 0.1, "both test inputs and a share"),
            (["t"], None, 0.0, "no file for it"),
            ([], None, 0.1, "no file for it"),
            ([], "test.jsonl", 0.0, "nothing to write"),
            (["t"], "train.jsonl", 0.0, "named for both"),
            (["t"], "in.jsonl", 0.0, "both input and output"),
        ],
    )
    def test_what_cannot_be_meant(self, tmp_path, test_inputs, test_out, held_out, problem):
        source = write(tmp_path / "in.jsonl", [pair("One?")])
        before = source.read_bytes()
        with pytest.raises(InvalidInputError, match=problem):
            prepare_preferences(
                [source],
                [write(tmp_path / name, [pair("Two?")]) for name in test_inputs],
                tmp_path / "train.jsonl",
                tmp_path / test_out if test_out else None,
                PreferenceSettings(held_out=held_out),
            )
        assert source.read_bytes() == before
        assert not (tmp_path / "train.jsonl").exists()


class TestLengths:
    def test_a_pair_over_the_limit_is_dropped_and_never_cut(self, tmp_path):
        # "one two": 3 + 1 for the answer's beginning; an answer of n words ends at n more.
        train = [pair("one two", "a b c", "d"), pair("one two", "a b", "c"), pair("one two three", "a", "b")]
        report = run(tmp_path, train, count_tokens=count_words, max_length=6, max_prompt_length=4)

        assert [record.value["chosen"][0]["content"] for record in read_records(tmp_path / "train.jsonl")] == ["a b"]
        assert report.dropped == {
            "prompt and answer of more than 6 tokens": 1,
            "a prompt of more than 4 tokens": 1,
        }

    def test_the_longer_answer_counts_whichever_it_is(self, tmp_path):
        report = run(tmp_path, [pair("a", "b", "c d e f g"), pair("b")], count_tokens=count_words, max_length=5)

        assert report.dropped == {"prompt and answer of more than 5 tokens": 1}

    def test_a_limit_needs_a_tokenizer(self, tmp_path):
        with pytest.raises(InvalidInputError, match="no tokenizer"):
            run(tmp_path, [pair("a")], max_prompt_length=5)

    def test_an_error_of_the_tokenizer_leaves_no_file(self, tmp_path):
        def fail(messages):
            raise TemplateError("the template is unsound", "Use another")

        with pytest.raises(TemplateError):
            run(tmp_path, [pair("a")], count_tokens=fail)
        assert [path.name for path in tmp_path.iterdir()] == ["train-in.jsonl"]


class TestDropping:
    def test_duplicates(self, tmp_path):
        train = [pair("One?"), pair("one?"), pair("One?", rejected="nay"), pair("One?")]

        assert run(tmp_path, train).dropped == {DUPLICATE: 2}
        assert run(tmp_path, train, drop_duplicates=False).n_kept == 4

    def test_sources(self, tmp_path):
        train = [feedback("One?", 5, 1), feedback("Two?", 5, 1, source="truthful_qa")]
        report = run(tmp_path, train, drop_sources=("truthful_qa",))

        assert asked(tmp_path / "train.jsonl") == ["One?"]
        assert report.dropped == {"a source to leave out": 1}

    def test_all_pairs_of_a_record_count_as_one_record(self, tmp_path):
        train = [feedback("One?", 5, 5, 2, 1), feedback("Two?", 3, 3)]
        report = run(tmp_path, train, rejected="all")

        assert (report.n_kept, report.dropped) == (1, {"a tie": 1})
        assert report.changed["one of its pairs dropped: a tie"] == 1
        assert report.facts["splits"]["train"]["pairs"] == 2
        assert report.facts["splits"]["train"]["prompts"] == 1

    def test_damaged_records_are_counted_and_the_rest_is_kept(self, tmp_path):
        damaged = [{}, {"prompt": "a"}, pair(None), pair("b", chosen="\ud800"), pair("c", chosen=["x"], rejected=["y"])]
        report = run(tmp_path, [*damaged, pair("Sound?")])
        report.write(tmp_path / "report.json")

        assert (report.n_read, report.n_kept) == (6, 1)
        assert sum(report.dropped.values()) == 5
        assert asked(tmp_path / "train.jsonl") == ["Sound?"]

    def test_a_lone_surrogate_beside_a_sound_text_does_not_break_the_report(self, tmp_path):
        tied = pair("b\n| c", "same", "same", id="\ud800", source="\udfff")
        report = run(tmp_path, [tied, pair("a", id="\ud800", source="\udfff", generator_1="\ud800")])
        report.write(tmp_path / "report.json")

        (row,) = read_records(tmp_path / "train.jsonl")
        assert row.value["source"] == "train-in.jsonl"

    def test_a_file_with_nothing_recognised_names_the_formats(self, tmp_path):
        with pytest.raises(InvalidInputError, match=r"other\.jsonl holds no preferences.*ultrafeedback.*alpaca_eval"):
            prepare_preferences(
                [write(tmp_path / "in.jsonl", [pair("a")]), write(tmp_path / "other.jsonl", [{"text": "a"}] * 3)],
                [],
                tmp_path / "out.jsonl",
                None,
                PreferenceSettings(),
            )
        assert not (tmp_path / "out.jsonl").exists()

    def test_a_named_format_that_the_file_is_not(self, tmp_path):
        with pytest.raises(InvalidInputError, match="in the format hh"):
            run(tmp_path, [pair("a")], format="hh")

    def test_an_empty_file(self, tmp_path):
        with pytest.raises(InvalidInputError, match="holds no records"):
            run(tmp_path, [])

    def test_a_split_without_pairs_says_why(self, tmp_path):
        with pytest.raises(InvalidInputError, match=r"no pair is left for the train split.*a tie \(3\)"):
            run(tmp_path, [feedback(f"{n}?", 3, 3) for n in range(3)])
        assert not (tmp_path / "train.jsonl").exists()

    def test_too_little_to_hold_out(self, tmp_path):
        with pytest.raises(InvalidInputError, match=r"test split.*Hold out a larger share"):
            run(tmp_path, [pair("a")], held_out=1e-9)


def test_damaged_lines_are_dropped_and_counted(tmp_path):
    source = write(tmp_path / "in.jsonl", [pair("a")])
    source.write_text('{"prompt": "cut\n' + source.read_text() + "3\n")
    report = prepare_preferences([source], [], tmp_path / "o.jsonl", None, PreferenceSettings(), None)

    assert (report.n_read, report.n_kept) == (3, 1)
    assert report.dropped == {"not JSON": 1, "no JSON object": 1}


def test_records_from_anywhere(tmp_path):
    records = (Record(f"hub@train:{n}", pair(f"Question {n}?")) for n in range(5))
    tests = [Record("hub@test:1", pair("Question 3?"))]
    report = prepare_preference_records(
        records, tests, tmp_path / "train.parquet", tmp_path / "test.jsonl", PreferenceSettings()
    )

    assert asked(tmp_path / "train.parquet") == [f"Question {n}?" for n in (0, 1, 2, 4)]
    assert report.examples[IN_BOTH] == ["hub@train:3: Question 3?"]


def test_scores_that_are_null_in_parquets_first_rows(tmp_path):
    train = [pair(f"Question {n}?") for n in range(1100)]
    train += [pair("Scored?", score_chosen=2, score_rejected=1)]
    out = tmp_path / "train.parquet"
    prepare_preferences([write(tmp_path / "in.jsonl", train)], [], out, None, PreferenceSettings())
    rows = [record.value for record in read_records(out)]

    assert (rows[0]["score_chosen"], rows[-1]["score_chosen"], len(rows)) == (None, 2.0, 1101)
    report = prepare_preferences([out], [], tmp_path / "again.jsonl", None, PreferenceSettings())
    assert [record.value for record in read_records(tmp_path / "again.jsonl")] == rows
    assert report.n_kept == 1101


def test_progress_is_told(tmp_path):
    told = []
    records = [Record(f"x:{n}", pair(f"Question {n}?")) for n in range(2500)]
    prepare_preferences([records], [], tmp_path / "out.jsonl", None, PreferenceSettings(), on_progress=told.append)

    assert told == [1000, 2000]


class TestSettings:
    def test_what_is_written_is_read(self):
        settings = PreferenceSettings(score="overall", drop_sources=("a", "b"), max_length=1024, min_margin=0.5)

        assert PreferenceSettings.parse(json.loads(json.dumps(settings.as_json()))) == settings
        assert PreferenceSettings.parse({}) == PreferenceSettings()

    def test_an_unknown_key_is_named_with_the_one_that_was_meant(self):
        with pytest.raises(InvalidInputError, match=r"'min_margins'.*Did you mean min_margin\."):
            PreferenceSettings.parse({"min_margins": 1})
        with pytest.raises(InvalidInputError, match=r"Settings are rejected, ties"):
            PreferenceSettings.parse({3: 1})

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("format", "xml"),
            ("format", 3),
            ("format", []),
            ("score", "fine"),
            ("score", []),
            ("rejected", "first"),
            ("ties", True),
            ("min_margin", -1),
            ("min_margin", float("nan")),
            ("min_margin", "1"),
            ("max_length_ratio", 0.5),
            ("seed", 1.5),
            ("seed", True),
            ("drop_sources", "truthful_qa"),
            ("drop_sources", [1]),
            ("drop_duplicates", "no"),
            ("max_length", 0),
            ("max_length", 1e3),
            ("max_prompt_length", "512"),
            ("held_out", 0.9),
            ("held_out", None),
        ],
    )
    def test_values_that_are_not_allowed(self, name, value):
        with pytest.raises(InvalidInputError, match=name):
            PreferenceSettings.parse({name: value})
