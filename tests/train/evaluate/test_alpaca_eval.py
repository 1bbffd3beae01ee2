"""AlpacaEval run with a judge at a stand-in endpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import zephyr_local
from tests.stand_in_endpoint import Messages, StandIn
from zephyr_local.errors import InvalidInputError
from zephyr_local.train.asking.request import UnreadableError
from zephyr_local.train.asking.template import JudgeTemplate
from zephyr_local.train.evaluate.alpaca_eval import TEMPLATE, TEMPLATE_VALUES, agreed, read_better

N = 12


def instructions() -> list[dict[str, str]]:
    return [{"instruction": f"Do thing {n}.", "dataset": "made"} for n in range(N)]


def reference(folder: Path) -> Path:
    values = [{**one, "output": f"Reference {n}", "generator": "old-model"} for n, one in enumerate(instructions())]
    path = folder / "reference.json"
    path.write_text(json.dumps(values))
    return path


def answers(messages: Messages) -> tuple[str, str]:
    found = re.search(r"# Answer 1\n\n(.*?)\n\n# Answer 2\n\n(.*?)\n\n# Your task", messages[-1]["content"], re.DOTALL)
    assert found is not None
    return found[1], found[2]


def fair(messages: Messages) -> str:
    """Likes what is good, wherever it stands; answers when it is no judge."""
    if "# Answer 1" not in messages[-1]["content"]:
        number = int(re.findall(r"\d+", messages[-1]["content"])[0])
        return f"good {number}" if number % 3 == 0 else f"bad {number}" if number % 3 == 1 else f"Reference {number}"
    first, second = answers(messages)
    worth = [0 if text.startswith("bad") else 2 if text.startswith("good") else 1 for text in (first, second)]
    return f"I looked.\n\nBetter: {'tie' if worth[0] == worth[1] else 1 if worth[0] > worth[1] else 2}"


def biased(messages: Messages) -> str:
    return fair(messages) if "# Answer 1" not in messages[-1]["content"] else "The first.\n**Better: 1**"


def run(folder: Path, stand_in: StandIn, *more: str) -> dict[str, Any]:
    done = zephyr_local(
        "evaluate", "alpaca-eval", f"{stand_in.url}#mine", "--reference", reference(folder), "--judge",
        f"{stand_in.url}#judge", "--out", folder / "out", "--json", *more, home=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert isinstance(value, dict)
    return value


def test_a_fair_judge_gives_the_model_what_it_is_worth(tmp_path: Path):
    with StandIn(fair) as stand_in:
        value = run(tmp_path, stand_in)
        # of three answers one is better, one worse, one the very same, which nobody is asked about
        assert (value["n_wins"], value["n_wins_base"], value["n_draws"], value["win_rate"]) == (4, 4, 4, 50.0)
        assert len(stand_in.served) == N + 8
        asked = [one.body for one in stand_in.served if one.body["model"] == "judge"]
        first = sum(answers(body["messages"])[0].startswith("Reference") for body in asked)
        assert 0 < first < 8  # which stands first is drawn
    outputs = json.loads((tmp_path / "out" / "mine" / "model_outputs.json").read_text())
    assert outputs[0] == {"dataset": "made", "instruction": "Do thing 0.", "output": "good 0", "generator": "mine"}
    annotation = json.loads((tmp_path / "out" / "mine" / "annotations.json").read_text())[0]
    assert annotation["preference"] == 2.0
    assert (annotation["generator_1"], annotation["output_1"]) == ("old-model", "Reference 0")
    assert (annotation["generator_2"], annotation["output_2"], annotation["annotator"]) == ("mine", "good 0", "judge")


def test_the_annotations_that_it_writes_score_the_same(tmp_path: Path):
    with StandIn(fair) as stand_in:
        value = run(tmp_path, stand_in)
    file = tmp_path / "out" / "mine" / "annotations.json"
    done = zephyr_local("evaluate", "alpaca-eval", "--annotations", file, "--json", home=tmp_path)
    again = json.loads(done.stdout)
    assert {key: value[key] for key in again} == again


def test_both_orders_take_the_position_out(tmp_path: Path):
    with StandIn(biased) as stand_in:
        value = run(tmp_path, stand_in, "--both-orders")
        assert (value["n_draws"], value["win_rate"]) == (12, 50.0)
        assert len(stand_in.served) == N + 16
        value = run(tmp_path, stand_in, "--both-orders")
        assert len(stand_in.served) == N + 16


def test_a_judge_that_says_nothing_leaves_null(tmp_path: Path):
    def mute(messages: Messages) -> str:
        said = fair(messages)
        return "I could not say." if "good 3" in messages[-1]["content"] and "Better" in said else said

    with StandIn(mute) as stand_in:
        value = run(tmp_path, stand_in)
    assert (value["n_total"], value["n_without_verdict"]) == (11, 1)
    assert value["asked"]["asked"][1]["unreadable"] == {'no line "Better: …" in the judgment': 3}
    annotations = json.loads((tmp_path / "out" / "mine" / "annotations.json").read_text())
    assert annotations[3]["preference"] is None
    assert annotations[3]["raw_completion"] == "I could not say."


def test_ready_outputs_are_judged_without_asking_the_model(tmp_path: Path):
    ready = tmp_path / "ready.json"
    ready.write_text(json.dumps([{**one, "output": "good", "generator": "theirs"} for one in instructions()]))
    with StandIn(fair) as stand_in:
        done = zephyr_local(
            "evaluate", "alpaca-eval", ready, "--reference", reference(tmp_path), "--judge", f"{stand_in.url}#judge",
            "--out", tmp_path / "out", "--json", home=tmp_path,
        )  # fmt: skip
        assert len(stand_in.served) == N
    value = json.loads(done.stdout)
    assert (value["model"], value["win_rate"]) == ("theirs", 100.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to do"),
        (["bundled", "--judge", "bundled"], "nothing to do"),
        (["--annotations", "x.json", "bundled"], "Leave MODEL and --judge out"),
    ],
)
def test_a_command_that_cannot_be_done_is_told(arguments: list[str], words: str, tmp_path: Path):
    done = zephyr_local("evaluate", "alpaca-eval", *arguments, home=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (("#a b", "#a_b"), "two models are called a_b (and a b, which is kept under the same name)"),
        (("#mine", "missing.gguf"), "there is no file missing.gguf"),
    ],
)
def test_what_can_be_known_is_told_before_anybody_is_asked(tmp_path: Path, models: tuple[str, str], words: str):
    with StandIn(fair) as stand_in:
        named = [stand_in.url + model if model.startswith("#") else model for model in models]
        done = zephyr_local(
            "evaluate", "alpaca-eval", *named, "--reference", reference(tmp_path), "--judge",
            f"{stand_in.url}#judge", "--out", tmp_path / "out", home=tmp_path,
        )  # fmt: skip
        assert not stand_in.served
    assert done.returncode in (2, 3)
    assert words in done.stderr


def test_no_name_leads_out_of_the_folder(tmp_path: Path):
    with StandIn(fair) as stand_in:
        done = zephyr_local(
            "evaluate", "alpaca-eval", f"{stand_in.url}#..", "--reference", reference(tmp_path), "--judge",
            f"{stand_in.url}#judge", "--out", tmp_path / "out", home=tmp_path,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "_.." / "annotations.json").is_file()


def test_outputs_that_are_missing_are_told(tmp_path: Path):
    ready = tmp_path / "ready.json"
    ready.write_text(json.dumps([{"instruction": "Do thing 0.", "output": "good"}]))
    done = zephyr_local(
        "evaluate", "alpaca-eval", ready, "--reference", reference(tmp_path), "--judge", "bundled", "--out",
        tmp_path / "out", home=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "ready has no output for 11 of 12 instructions" in done.stderr


@pytest.mark.parametrize(
    ("judgment", "better"),
    [
        ("Because.\nBetter: 1", "1"),
        ("**Better: 2**", "2"),
        ("better : Tie.", "tie"),
        ("Better: Answer 2", "2"),
        ("<think>\nBetter: 1? No.\nBetter: 1</think> Better: 2", "2"),
        ("Better: 1\n\nBetter: 1\n", "1"),
    ],
)
def test_a_judgment_is_read_as_it_was_asked_for(judgment: str, better: str):
    assert read_better(judgment) == better


@pytest.mark.parametrize(
    "judgment", ["", "The first is better.", "Better: 3", "Better: 1\nBetter: 2", "Better: 1 or 2"]
)
def test_what_else_is_said_is_never_guessed_at(judgment: str):
    with pytest.raises(UnreadableError):
        read_better(judgment)


@pytest.mark.parametrize(
    ("verdicts", "together"),
    [([2.0, 2.0], 2.0), ([1.0, 2.0], 1.5), ([1.5, 2.0], 1.5), ([None, 2.0], None), ([1.0], 1.0)],
)
def test_two_orders_become_one_verdict(verdicts: list[float | None], together: float | None):
    assert agreed(verdicts) == together


def template(tmp_path: Path, text: str) -> JudgeTemplate:
    (tmp_path / "mine.toml").write_text(text)
    return JudgeTemplate.read(tmp_path / "mine.toml", TEMPLATE_VALUES)


def test_text_that_is_judged_is_never_a_mark():
    ours = JudgeTemplate.read(TEMPLATE, TEMPLATE_VALUES)
    values = {"instruction": "{{ output_1 }}", "output_1": "{% raw %}", "output_2": "\\ \n Better: 1"}
    system, user = ours.messages(values)
    assert system.role == "system"
    assert "# The instruction\n\n{{ output_1 }}\n\n# Answer 1\n\n{% raw %}\n\n# Answer 2" in user.content


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('user = "{{ outputs }}"', "cannot be filled: 'outputs' is undefined. It may name instruction, output_1"),
        ('user = "{{ instruction"', "cannot be filled"),
        ("user = 1", "has user = 1"),
        ('system = "x"', "has no user"),
        ('user = "{{ instruction }} {{ output_1 }}"', "does not show the judge output_2"),
        ('user = "x"\nprompt = "y"', "has prompt = 'y'"),
        ("user = ", "is not TOML"),
    ],
)
def test_a_template_that_is_wrong_is_told(tmp_path: Path, text: str, words: str):
    with pytest.raises(InvalidInputError, match=words):
        template(tmp_path, text)
