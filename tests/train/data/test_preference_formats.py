"""Each published format, sound and damaged, through the reader of one record."""

from __future__ import annotations

import itertools
import json

import pytest

from zephyr_local.chat_types import Message
from zephyr_local.errors import InvalidInputError
from zephyr_local.train.data.preference_formats import (
    FORMAT_NAMES,
    alpaca_eval_verdict,
    check_format,
    described_formats,
    read_preference,
    recognised_format,
)
from zephyr_local.train.data.preference_records import Preference, ScoredAnswers, UnusablePreferenceError
from zephyr_local.train.data.records import Record
from zephyr_local.train.data.ultrafeedback import DOUBTFUL_TEN, NO_SCORE, RATING_LEFT_OUT, TEN_MADE_ONE, TOO_FEW


def read(value, score="mean"):
    name = recognised_format(value)
    assert name is not None
    return read_preference(Record("file.jsonl:1", value), name, score)


def reason_of(value, score="mean"):
    with pytest.raises(UnusablePreferenceError) as caught:
        read(value, score)
    return caught.value.reason


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def completion(response, ratings, overall=None, spelling="instruction_following"):
    names = (spelling, "honesty", "truthfulness", "helpfulness")
    annotations = {
        name: {"Rating": rating, "Rationale": "because"} for name, rating in zip(names, ratings, strict=True)
    }
    annotations["truthfulness"]["Type"] = ["1"]
    return {
        "model": "some-model",
        "principle": "helpfulness",
        "custom_system_prompt": "Help.",
        "response": response,
        "annotations": annotations,
        "critique": "Fine.",
        "fine-grained_score": 4.0,
        "overall_score": overall,
    }


def ultrafeedback(*completions):
    return {
        "source": "flan",
        "instruction": "Which is the capital of France?",
        "models": ["a", "b"],
        "completions": list(completions),
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
    }


class TestUltraFeedback:
    def test_the_score_is_the_mean_of_the_four_aspects(self):
        found = read(ultrafeedback(completion("Paris.", "5445"), completion("Lyon.", "1232")))

        assert isinstance(found, ScoredAnswers)
        assert found.prompt == (Message("user", "Which is the capital of France?"),)
        assert [(answer.text, answer.score) for answer in found.answers] == [("Paris.", 4.5), ("Lyon.", 2.0)]
        assert found.source == "flan"
        assert found.left_out == {}

    def test_the_authors_first_spelling_of_instruction_following(self):
        found = read(ultrafeedback(*(completion(text, "5111", spelling="instruction-following") for text in "ab")))

        assert found.answers[0].score == 2.0
        assert found.left_out == {}

    def test_a_rating_that_is_no_number_is_left_out_of_the_mean_and_counted(self):
        not_numbers = completion("a", ["N/A", "4", "nan", 5])
        found = read(ultrafeedback(not_numbers, completion("b", ["inf", True, "2", None])))

        assert [answer.score for answer in found.answers] == [4.5, 2.0]
        assert found.left_out == {RATING_LEFT_OUT: 5}

    def test_an_answer_without_any_rating_is_no_candidate(self):
        none = completion("a", ["N/A"] * 4)
        found = read(ultrafeedback(none, completion("b", "3333"), completion("c", "2222")))

        assert [answer.text for answer in found.answers] == ["b", "c"]
        assert found.left_out == {RATING_LEFT_OUT: 4, NO_SCORE: 1}

    def test_fewer_than_two_candidates(self):
        with pytest.raises(UnusablePreferenceError) as caught:
            read(ultrafeedback(completion("a", ["N/A"] * 4), completion("b", "3333")))

        assert caught.value.reason == TOO_FEW
        assert caught.value.left_out == {RATING_LEFT_OUT: 4, NO_SCORE: 1}

    def test_the_overall_score_where_it_is_asked_for(self):
        record = ultrafeedback(completion("a", "3333", overall=7.5), completion("b", "4444", overall="6"))

        assert [answer.score for answer in read(record, "overall").answers] == [7.5, 6.0]
        assert [answer.score for answer in read(record, "mean").answers] == [3.0, 4.0]

    def test_the_known_error_of_overall_scores(self):
        low = completion("low", "1222", overall=10)
        middling = completion("middling", "3333", overall=10.0)
        high = completion("high", "5554", overall=10)
        found = read(ultrafeedback(low, middling, high), "overall")

        assert [(answer.text, answer.score) for answer in found.answers] == [("low", 1.0), ("high", 10.0)]
        assert found.left_out == {TEN_MADE_ONE: 1, DOUBTFUL_TEN: 1}

    def test_damaged_completions_are_counted(self):
        damaged = [None, "text", 3, {"response": None}, {"response": " "}, {"response": "x\ud800"}, {"response": "y"}]
        found = read(ultrafeedback(*damaged, completion("a", "3333"), completion("b", "4444")))

        assert [answer.text for answer in found.answers] == ["a", "b"]
        assert sum(found.left_out.values()) == len(damaged)

    @pytest.mark.parametrize("annotations", [None, [], "5", {"honesty": "5"}, {"honesty": {"Rating": ["5"]}}])
    def test_damaged_annotations_give_no_score(self, annotations):
        damaged = {**completion("a", "5555"), "annotations": annotations}

        assert reason_of(ultrafeedback(damaged, completion("b", "4444"))) == TOO_FEW


class TestPairs:
    def test_ultrafeedback_binarised(self):
        found = read(
            {
                "prompt": "Hello?",
                "prompt_id": "af3c",
                "chosen": [user("Hello?"), assistant("Hello!")],
                "rejected": [user("Hello?"), assistant("No.")],
                "messages": [user("Hello?"), assistant("Hello!")],
                "score_chosen": 8.5,
                "score_rejected": 3,
            }
        )

        assert isinstance(found, Preference)
        assert found.as_record() == {
            "prompt": [user("Hello?")],
            "chosen": [assistant("Hello!")],
            "rejected": [assistant("No.")],
            "score_chosen": 8.5,
            "score_rejected": 3.0,
            "id": "af3c",
            "source": "file.jsonl",
        }

    def test_our_own_pairs_come_back_as_they_are(self):
        record = {
            "prompt": [{"role": "system", "content": ""}, user("One?"), assistant("One."), user("Two?")],
            "chosen": [assistant("Two.")],
            "rejected": [assistant("Three.")],
            "score_chosen": None,
            "score_rejected": None,
            "id": "7",
            "source": "made",
        }

        assert recognised_format(record) == "pairs"
        assert read(record).as_record() == record

    @pytest.mark.parametrize("key", ["prompt", "question", "instruction"])
    def test_texts(self, key):
        found = read({key: "Why?", "chosen": "So.", "rejected": "No.", "system": "Be brief."})

        assert found.prompt == (Message("system", "Be brief."), Message("user", "Why?"))
        assert (found.chosen.text, found.rejected.text, found.margin) == ("So.", "No.", None)

    def test_argillas_spellings(self):
        found = read(
            {
                "instruction": "Why?",
                "chosen_response": "So.",
                "rejected_response": "No.",
                "chosen_avg_rating": 4.75,
                "rejected_avg_rating": 2.5,
            }
        )

        assert (found.chosen.text, found.rejected.text, found.margin) == ("So.", "No.", 2.25)

    def test_an_alpaca_input_follows_its_instruction(self):
        found = read({"instruction": "Translate.", "input": "Bonjour", "chosen": "Hello", "rejected": "Bye"})

        assert found.last == "Translate.\n\nBonjour"

    def test_implicit_prompts(self):
        before = [{"role": "system", "content": "Be kind."}, user("One?"), assistant("One."), user("Two?")]
        value = {"chosen": [*before, assistant("Two.")], "rejected": [*before, assistant("No.")]}

        assert recognised_format(value) == "implicit"
        assert [turn.content for turn in read(value).prompt] == ["Be kind.", "One?", "One.", "Two?"]

    def test_answers_after_different_prompts_are_no_pair(self):
        chosen = [user("One?"), assistant("One."), user("And two?"), assistant("Two.")]
        rejected = [user("One?"), assistant("Two."), user("And two?"), assistant("One.")]

        assert "different prompts" in reason_of({"chosen": chosen, "rejected": rejected})

    def test_the_same_record_has_the_same_id_wherever_it_stands(self):
        value = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}
        one = read_preference(Record("a.jsonl:1", value), "pairs", "mean")
        two = read_preference(Record("b.parquet:99", value), "pairs", "mean")
        other = read_preference(Record("a.jsonl:1", {**value, "chosen": "Thus."}), "pairs", "mean")

        assert one.id == two.id != other.id

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"chosen": 3}, "not text"),
            ({"chosen": "  \n"}, "empty"),
            ({"rejected": "half \ud83d"}, "surrogate"),
            ({"rejected": "nul\0"}, "NUL"),
            ({"chosen": [assistant("a")]}, "one answer is text"),
            ({"prompt": {"text": "Why?"}}, "a prompt that is not text"),
            ({"prompt": []}, "without a user's turn"),
            ({"prompt": [assistant("I begin.")]}, "by turns"),
            ({"prompt": [user("a"), user("b")]}, "by turns"),
            ({"prompt": [user("a"), assistant("b")]}, "last turn"),
            ({"prompt": [user("a"), {"role": "system", "content": "b"}]}, "system turn"),
            ({"prompt": [{"role": "tool", "content": "b"}]}, "another role"),
            ({"prompt": [["user", "b"]]}, "another role"),
            ({"prompt": [{"role": ["user"], "content": "b"}]}, "another role"),
            ({"prompt": [user(None)]}, "not text"),
            ({"prompt": [user([{"type": "image"}])]}, "not text"),
        ],
    )
    def test_damaged_records_say_why(self, changes, reason):
        assert reason in reason_of({"prompt": "Why?", "chosen": "So.", "rejected": "No.", **changes})

    @pytest.mark.parametrize("messages", [[], [user("a")], ["a"], [None]])
    def test_damaged_message_lists_say_why(self, messages):
        assert reason_of({"prompt": "Why?", "chosen": messages, "rejected": [assistant("b")]})

    @pytest.mark.parametrize("score", ["high", float("nan"), 1e300, 10**400, [1], True])
    def test_a_score_that_is_no_score_is_none(self, score):
        found = read({"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": score, "score_rejected": 1})

        assert found.chosen.score is None
        assert found.margin is None


class TestHelpfulAndHarmless:
    def test_whole_dialogues(self):
        before = "\n\nHuman: Hi!\n\nAssistant: Hello.\n\nHuman: How are you?\n\nAssistant:"
        value = {"chosen": before + " Well.", "rejected": before + " Bad.\nVery bad."}

        assert recognised_format(value) == "hh"
        found = read(value)
        assert [(turn.role, turn.content) for turn in found.prompt] == [
            ("user", "Hi!"),
            ("assistant", "Hello."),
            ("user", "How are you?"),
        ]
        assert (found.chosen.text, found.rejected.text) == ("Well.", "Bad.\nVery bad.")

    def test_a_prompt_and_two_answers(self):
        found = read({"prompt": "\n\nHuman: Hi!\n\nAssistant:", "chosen": " Hello.", "rejected": " Go."})

        assert found.prompt == (Message("user", "Hi!"),)
        assert (found.chosen.text, found.rejected.text) == ("Hello.", "Go.")

    @pytest.mark.parametrize(
        ("chosen", "rejected"),
        [
            ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: c\n\nAssistant: d"),
            ("\n\nHuman: a\n\nAssistant:", "\n\nHuman: a\n\nAssistant: d"),
            ("\n\nHuman: a", "\n\nHuman: b"),
            ("\n\nHuman: a\n\nHuman: b\n\nAssistant: c", "\n\nHuman: a\n\nHuman: b\n\nAssistant: d"),
            ("\n\nHuman: a\n\nAssistant: b", "no dialogue"),
            ("\n\nHuman: a\n\nAssistant: b", 3),
        ],
    )
    def test_damaged_dialogues_say_why(self, chosen, rejected):
        assert reason_of({"chosen": chosen, "rejected": rejected})


class TestAlpacaEval:
    def record(self, preference):
        return {
            "instruction": "Why?",
            "output_1": "First.",
            "generator_1": "text_davinci_003",
            "output_2": "Second.",
            "generator_2": "ours",
            "dataset": "koala",
            "preference": preference,
        }

    def test_the_preferred_output_is_chosen(self):
        one, two = read(self.record(1)), read(self.record(2.0))

        assert (one.chosen.text, one.rejected.text) == ("First.", "Second.")
        assert (two.chosen.text, two.rejected.text) == ("Second.", "First.")
        assert one.margin is None
        assert one.source == "koala"

    @pytest.mark.parametrize("preference", [0, 0.0, 1.5])
    def test_ties(self, preference):
        assert reason_of(self.record(preference)) == "a tie"
        assert alpaca_eval_verdict(self.record(preference)) == 1.5

    @pytest.mark.parametrize("preference", [None, "N/A", float("nan"), 3, -1, [2]])
    def test_without_verdict(self, preference):
        assert reason_of(self.record(preference)) == "no verdict"
        assert alpaca_eval_verdict(self.record(preference)) is None

    def test_weighted_verdicts_of_the_second_version_are_scores(self):
        found = read(self.record(1.75))

        assert (found.chosen.text, found.chosen.score, found.rejected.score) == ("Second.", 0.75, 0.25)


def test_what_is_no_preference_is_not_recognised():
    for value in (
        {},
        {"messages": [user("a"), assistant("b")]},
        {"instruction": "a", "output": "b"},
        {"prompt": "a", "chosen": "b"},
        {"prompt": "a", "chosen": None, "rejected": "b"},
        {"completions": []},
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
    ):
        assert recognised_format(value) is None, value


def test_a_named_format_refuses_what_it_is_not():
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    for name in set(FORMAT_NAMES) - {"pairs"}:
        with pytest.raises(UnusablePreferenceError, match="not recognised"):
            read_preference(Record("x:1", pair), name, "mean")


def test_format_names():
    check_format("auto")
    for name in FORMAT_NAMES:
        check_format(name)
        assert name in described_formats()
    with pytest.raises(InvalidInputError, match="ultrafeedback, alpaca_eval"):
        check_format("ultrafedback")


HOSTILE = [None, True, 0, -1.5, "", "x", "\ud800", [], [[]], [None], {}, {"role": "user"}, [{"role": 1}], [[1, 2]]]


@pytest.mark.parametrize(
    "keys",
    [
        ("instruction", "completions"),
        ("instruction", "output_1", "output_2", "preference"),
        ("prompt", "chosen", "rejected"),
        ("prompt_id", "chosen", "rejected"),
        ("chosen", "rejected", "system", "input", "id", "source"),
    ],
)
def test_any_json_value_in_any_key_is_read_or_refused_with_a_reason(keys):
    sound = {"prompt": "a", "instruction": "a", "chosen": "b", "rejected": "c", "output_1": "b", "output_2": "c"}
    base = {key: sound.get(key, "d") for key in keys}
    n_read, reasons = 0, list[str]()
    for key, value, other, other_value in itertools.product(keys, HOSTILE, keys, HOSTILE):
        record = Record("x:1", {**base, key: value, other: other_value})
        name = recognised_format(record.value)
        if name is None:
            continue
        try:
            found = read_preference(record, name, "mean")
        except UnusablePreferenceError as error:
            reasons.append(error.reason)
            continue
        n_read += 1
        if isinstance(found, Preference):
            written = json.dumps(found.as_record(), ensure_ascii=False, allow_nan=False).encode()
            assert json.loads(written) == found.as_record()
    assert reasons
    assert all(reasons)
    assert bool(n_read) == (keys[0] == "prompt")  # elsewhere more than one value would have to be sound
