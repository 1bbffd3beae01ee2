"""A judge's reply is read as it was asked for, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from zephyr_local.errors import InvalidInputError
from zephyr_local.train.asking.request import UnreadableError
from zephyr_local.train.data.ultrafeedback import ASPECTS
from zephyr_local.train.feedback.ratings import TEMPLATES, Rating, read_ratings, read_templates


def reply(*ratings: object, order: list[int] | None = None) -> str:
    numbers = order or list(range(1, len(ratings) + 1))
    return "\n\n".join(
        f"Answer {n}\nRating: {r}\nReason: because of {n}." for n, r in zip(numbers, ratings, strict=True)
    )


def test_each_answer_gets_its_rating_and_reason():
    assert read_ratings(reply(5, 1, 3), 3) == (
        Rating(5, "because of 1."), Rating(1, "because of 2."), Rating(3, "because of 3.")
    )  # fmt: skip


def test_the_numbers_count_not_the_order():
    assert [one.rating for one in read_ratings(reply(5, 1, 3, order=[3, 1, 2]), 3)] == [1, 3, 5]


def test_markdown_and_more_words_do_no_harm():
    text = (
        "Here is what I think:\n\n### **Answer 1**\n**Rating:** 4/5\n**Reason:** It is\nlong, on two lines.\n\n"
        "### Answer 2:\n- Rating: 2 out of 5\n- Rationale: Short.\n"
    )
    assert read_ratings(text, 2) == (Rating(4, "It is long, on two lines."), Rating(2, "Short."))


def test_one_answer_needs_no_heading():
    assert read_ratings("Rating: 3\nReason: fair.", 1) == (Rating(3, "fair."),)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "All are good.",
        reply(5),  # of two
        reply(5, 4, 3),  # of two
        reply(5, 4, order=[1, 1]),
        reply(5, 4, order=[1, 3]),
        reply(5, 0),
        reply(5, 6),
        reply(5, 4.5),
        reply(5, "four"),
        reply(5, "4 or 5"),
        reply(5, "-2"),
        reply(5, "<3"),
        reply(5, ".5"),
        reply(5, "4" * 5000),
        f"Answer {'1' * 5000}\nRating: 5\nReason: x",
        reply(5, 4) + "x" * 100_001,
        reply(5, "N/A"),
        reply(5, "4\nRating: 3"),
        "Answer 1\nRating: 5\n\nAnswer 2\nRating: 4\nReason: x",
        "Answer 1\nRating: 5\nReason:\n\nAnswer 2\nRating: 4\nReason: x",
        "Answer 1\nReason: x\n\nAnswer 2\nRating: 4\nReason: x",
    ],
)
def test_what_is_not_all_there_is_never_guessed(text: str):
    with pytest.raises(UnreadableError):
        read_ratings(text, 2)


@pytest.mark.parametrize("aspect", ASPECTS)
def test_our_templates_ask_for_the_form_that_is_read(aspect: str):
    template = read_templates()[aspect]
    system, user = template.messages({"instruction": "Do {{ it }}.", "answers": ["First one.", "{% if %}"]})
    assert system.role == "system"
    assert "# The instruction\n\nDo {{ it }}." in user.content
    assert "# Answer 1\n\nFirst one.\n" in user.content
    assert "# Answer 2\n\n{% if %}\n" in user.content
    assert "Rate each of the 2 answers" in user.content
    assert "Rating: a whole number from 1 to 5" in user.content
    assert "\n\n\n" not in user.content


def test_a_folder_of_ones_own_takes_their_place(tmp_path: Path):
    for aspect in ASPECTS:
        (tmp_path / f"{aspect}.toml").write_text(
            f"user = \"{aspect} of {{{{ answers | join(', ') }}}}: {{{{ instruction }}}}\""
        )
    templates = read_templates(tmp_path)
    (user,) = templates["honesty"].messages({"instruction": "x", "answers": ["a", "b"]})
    assert user.content == "honesty of a, b: x"
    (tmp_path / "honesty.toml").unlink()
    with pytest.raises(InvalidInputError, match=r"there is no judge template .*honesty.toml"):
        read_templates(tmp_path)


def test_the_templates_are_the_four_criteria():
    assert {path.stem for path in TEMPLATES.glob("*.toml")} == set(ASPECTS)


def test_what_a_model_thought_before_is_not_read():
    thought = f"<think>\n{reply(1, 1)}\n</think>\n\n{reply(5, 4)}"
    assert [one.rating for one in read_ratings(thought, 2)] == [5, 4]


def test_a_judge_that_repeats_newlines_is_read_at_once():
    assert [one.rating for one in read_ratings("\n" * 90_000 + reply(5, 4), 2)] == [5, 4]
