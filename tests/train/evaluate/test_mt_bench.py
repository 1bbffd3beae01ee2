"""MT-Bench run with models and a judge at a stand-in endpoint, and its files read by FastChat's rules."""

from __future__ import annotations

import json
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pandas
import pytest

from tests.cli.command import zephyr_local
from tests.stand_in_endpoint import Messages, StandIn
from tests.train.evaluate.mt_data import CATEGORIES, drawn, write_bench, write_lines, write_model_answers
from zephyr_local.errors import InvalidInputError
from zephyr_local.train.asking.request import UnreadableError
from zephyr_local.train.evaluate.mt_bench import read_rating, read_winner
from zephyr_local.train.evaluate.mt_files import JudgePrompt, read_answers, read_questions

N_TURNS = 31  # sixteen questions, one of them of one turn


def run(folder: Path, stand_in: StandIn, *more: str | Path, models: tuple[str | Path, ...] = ()) -> dict[str, Any]:
    named = models or (f"{stand_in.url}#mine", write_model_answers(folder / "theirs.jsonl", "theirs"))
    done = zephyr_local(
        "evaluate", "mt-bench", *named, *write_bench(folder), "--judge", f"{stand_in.url}#gpt-4", "--out",
        folder / "out", "--json", *more, home=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert isinstance(value, dict)
    return value


def by_fastchats_rules(file: Path) -> dict[str, dict[str, float]]:
    """What FastChat's show_result.py prints of single judgments: it reads the lines into a table, leaves scores of -1
    out, and takes means by model and turn, and by model.
    """
    table = pandas.read_json(file, lines=True)[["model", "score", "turn"]]
    table = table[table["score"] != -1]
    found: dict[str, dict[str, float]] = {}
    for (model, turn), mean in table.groupby(["model", "turn"])["score"].mean().items():
        found.setdefault(str(model), {})[f"turn {turn}"] = float(mean)
    for model, mean in table.groupby("model")["score"].mean().items():
        found[str(model)]["mean"] = float(mean)
    return found


def pairs_by_fastchats_rules(file: Path, baseline: str | None) -> dict[str, tuple[int, int, int, float]]:
    """And of pairs: games with an error are left out, a tie or a disagreement of the two orders is a tie for both, and
    the adjusted rate counts a tie as half a win. Rows of a baseline alone, which itself is not listed.
    """
    table = pandas.read_json(file, lines=True)
    table = table[(table["g1_winner"] != "error") & (table["g2_winner"] != "error")]
    rows = []
    for _, row in table.iterrows():
        names = {"model_1": row["model_1"], "model_2": row["model_2"]}
        if baseline is not None and baseline not in names.values():
            continue
        tie = row["g1_winner"] == "tie" or row["g1_winner"] != row["g2_winner"]
        for key, name in names.items():
            won = not tie and row["g1_winner"] == key
            rows.append({"model": name, "win": int(won), "loss": int(not tie and not won), "tie": int(tie)})
    sums = pandas.DataFrame(rows).groupby("model").sum()
    return {
        str(name): (
            int(row["win"]), int(row["loss"]), int(row["tie"]), float((row["win"] + row["tie"] / 2) / row.sum())
        )
        for name, row in sums.iterrows()
        if name != baseline
    }  # fmt: skip


def test_every_answer_is_rated_and_fastchat_reads_the_same_scores(tmp_path: Path):
    with StandIn(drawn) as stand_in:
        value = run(tmp_path, stand_in)
        assert len(stand_in.served) == N_TURNS + 2 * N_TURNS
    models = {model["model"]: model for model in value["models"]}
    theirs = by_fastchats_rules(tmp_path / "out" / "model_judgment" / "gpt-4_single.jsonl")
    assert models.keys() == theirs.keys() == {"mine", "theirs"}
    for name, scores in theirs.items():
        assert models[name]["mean"] == pytest.approx(scores["mean"])
        assert models[name]["by_turn"] == {"1": pytest.approx(scores["turn 1"]), "2": pytest.approx(scores["turn 2"])}
        assert models[name]["rated"] == N_TURNS
        assert list(models[name]["by_category"]) == list(CATEGORIES)


def test_judgments_and_answers_are_fastchats(tmp_path: Path):
    with StandIn(drawn) as stand_in:
        run(tmp_path, stand_in)
    lines = (tmp_path / "out" / "model_judgment" / "gpt-4_single.jsonl").read_text().splitlines()
    judgment = next(j for j in map(json.loads, lines) if j["model"] == "theirs" and j["question_id"] == 86)
    assert judgment.keys() == {
        "question_id", "model", "judge", "user_prompt", "judgment", "score", "turn", "tstamp"
    }  # fmt: skip
    assert judgment["judge"] == ["gpt-4", "single-math-v1"]
    assert judgment["user_prompt"] == "{judge} (REF 1) First of 6?: theirs 6 a"
    assert isinstance(judgment["tstamp"], float)
    name, answers = read_answers(tmp_path / "out" / "model_answer" / "mine.jsonl")
    assert name == "mine"
    assert [len(answers[80 + n]) for n in range(3)] == [2, 1, 2]


def test_the_second_turn_sees_the_first_and_categories_have_their_temperature(tmp_path: Path):
    with StandIn(drawn) as stand_in:
        run(tmp_path, stand_in)
        bodies = [one.body for one in stand_in.served if one.body["model"] == "mine"]
        judged = [one.body for one in stand_in.served if one.body["model"] == "gpt-4"]
    second = next(body for body in bodies if body["messages"][-1]["content"] == "Second of 4?")
    assert [turn["role"] for turn in second["messages"]] == ["user", "assistant", "user"]
    assert second["messages"][1]["content"].startswith("Reply ")
    counts = Counter(body["temperature"] for body in bodies)
    assert counts == {0.7: 7, 0.0: 16, 0.1: 8}  # writing has a question of one turn
    assert {body["temperature"] for body in judged} == {0.0}
    both = next(b for b in judged if "Second of 6?: theirs" in b["messages"][-1]["content"])
    assert both["messages"][-1]["content"] == "(REF 1, REF 2) First of 6? Second of 6?: theirs 6 a / theirs 6 b {x}"


def test_it_goes_on_where_it_was_and_keeps_other_models_judgments(tmp_path: Path):
    with StandIn(drawn) as stand_in:
        run(tmp_path, stand_in)
        n = len(stand_in.served)
        assert len(run(tmp_path, stand_in)["models"]) == 2
        assert len(stand_in.served) == n
        value = run(tmp_path, stand_in, models=(f"{stand_in.url}#third",))
    assert {model["model"] for model in value["models"]} == {"mine", "theirs", "third"}


def test_a_pair_is_the_same_whichever_comes_first(tmp_path: Path):
    theirs = write_model_answers(tmp_path / "theirs.jsonl", "theirs")
    with StandIn(drawn) as stand_in:
        mine = f"{stand_in.url}#mine"
        first = run(tmp_path, stand_in, "--mode", "pairwise-all", models=(mine, theirs))
        again = run(tmp_path, stand_in, "--mode", "pairwise-all", models=(theirs, mine))
    assert again["models"] == first["models"]
    assert len((tmp_path / "out" / "model_judgment" / "gpt-4_pair.jsonl").read_text().splitlines()) == N_TURNS


@pytest.mark.parametrize("mode", ["pairwise-all", "pairwise-baseline"])
def test_pairs_are_judged_in_both_orders_and_fastchat_reads_the_same(tmp_path: Path, mode: str):
    third = write_model_answers(tmp_path / "third.jsonl", "third")
    with StandIn(drawn) as stand_in:
        models = (f"{stand_in.url}#mine", write_model_answers(tmp_path / "theirs.jsonl", "theirs"), third)
        more = ("--mode", mode, *(("--baseline", "third") if mode == "pairwise-baseline" else ()))
        value = run(tmp_path, stand_in, *more, models=models)
        n_pairs = 3 if mode == "pairwise-all" else 2
        assert len(stand_in.served) == N_TURNS + n_pairs * 2 * N_TURNS
    file = tmp_path / "out" / "model_judgment" / "gpt-4_pair.jsonl"
    theirs = pairs_by_fastchats_rules(file, "third" if mode == "pairwise-baseline" else None)
    ours = {
        m["model"]: (m["wins"], m["losses"], m["ties"], pytest.approx(m["adjusted_win_rate"] / 100))
        for m in value["models"]
    }
    assert ours == theirs
    assert sum(wins for wins, _, _, _ in ours.values()) > 0
    judgment = json.loads(file.read_text().splitlines()[0])
    assert judgment["judge"] == ["gpt-4", "pair-v2"]
    assert judgment["g1_user_prompt"] != judgment["g2_user_prompt"]


def test_a_judgment_without_a_rating_is_minus_one_and_left_out(tmp_path: Path):
    def silent(messages: Messages) -> str:
        hidden = messages[0]["content"] == "Rate it." and "First of 4?: theirs" in messages[-1]["content"]
        return "No number from me." if hidden else drawn(messages)

    with StandIn(silent) as stand_in:
        value = run(tmp_path, stand_in)
    theirs = next(model for model in value["models"] if model["model"] == "theirs")
    assert (theirs["rated"], theirs["without_rating"]) == (N_TURNS - 1, 1)
    file = tmp_path / "out" / "model_judgment" / "gpt-4_single.jsonl"
    assert theirs["mean"] == pytest.approx(by_fastchats_rules(file)["theirs"]["mean"])
    minus = [j for j in map(json.loads, file.read_text().splitlines()) if j["score"] == -1]
    assert [(j["question_id"], j["judgment"]) for j in minus] == [(84, "No number from me.")]


def test_judgments_that_are_there_are_scored_without_asking(tmp_path: Path):
    with StandIn(drawn) as stand_in:
        value = run(tmp_path, stand_in)
    file = tmp_path / "out" / "model_judgment" / "gpt-4_single.jsonl"
    done = zephyr_local(
        "evaluate", "mt-bench", "--questions", tmp_path / "question.jsonl", "--judgments", file, "--plot",
        tmp_path / "radar.png", home=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    head, *rows = done.stdout.splitlines()
    assert head.split()[:4] == ["model", "mean", "turn", "1"]
    assert rows[0].split()[:2] == [value["models"][0]["model"], f"{value['models'][0]['mean']:.2f}"]
    png = (tmp_path / "radar.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    assert width > 500 < height


def test_the_bundled_model_answers_and_is_judged(tmp_path: Path):
    with StandIn(drawn) as stand_in:
        value = run(tmp_path, stand_in, "--limit", "2", models=("bundled",))
    assert [model["model"] for model in value["models"]] == ["zephyr-tiny"]
    assert value["models"][0]["rated"] == 3
    _, answers = read_answers(tmp_path / "out" / "model_answer" / "zephyr-tiny.jsonl")
    assert all(text.strip() for turns in answers.values() for text in turns)


def fails(folder: Path, *arguments: str | Path) -> str:
    done = zephyr_local("evaluate", "mt-bench", *arguments, "--out", folder / "out", home=folder)
    assert done.returncode == 2, done.stdout + done.stderr
    return done.stderr


def test_what_is_missing_is_told_before_anybody_is_asked(tmp_path: Path):
    given = write_bench(tmp_path)
    assert "nothing to do" in fails(tmp_path, *given)
    assert "there are none. Give --references" in fails(tmp_path, "bundled", *given[:4], "--judge", "bundled")
    baseline = fails(tmp_path, "bundled", *given, "--judge", "bundled", "--mode", "pairwise-baseline")
    assert "there is no baseline" in baseline
    few = write_lines(tmp_path / "few.jsonl", [{"question_id": 80, "choices": [{"turns": ["x", "y"]}]}])
    assert "has no answer to 81, 82, 83" in fails(tmp_path, few, *given, "--judge", "bundled")
    assert "the --references file has no answer to 84" in fails(
        tmp_path, "bundled", *given[:5], few, "--judge", "bundled"
    )
    assert "cannot judge" in fails(tmp_path, "bundled", *given, "--judge", "answers.jsonl")
    alone = fails(tmp_path, "bundled", *given, "--judge", "bundled", "--mode", "pairwise-all")
    assert "there are not two models to compare" in alone
    unused = fails(tmp_path, "bundled", *given, "--judge", "bundled", "--baseline", "bundled")
    assert "--baseline is not for the mode single" in unused
    assert "is no .png" in fails(tmp_path, *given, "--plot", "x.pdf")
    assert "pairs have none" in fails(tmp_path, *given, "--mode", "pairwise-all", "--plot", "x.png")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"turns": ["x"]}, "has no question_id"),
        ({"question_id": 1, "turns": []}, "has no list of texts in turns"),
        ({"question_id": 1, "turns": ["x", 2]}, "has no list of texts in turns"),
        ({"question_id": 1, "turns": ["a", "b", "c"]}, "has 3 turns"),
    ],
)
def test_a_question_that_is_wrong_is_told_with_its_line(tmp_path: Path, line: dict[str, Any], words: str):
    with pytest.raises(InvalidInputError, match=f"q.jsonl:1 {words}"):
        read_questions(write_lines(tmp_path / "q.jsonl", [line]))


@pytest.mark.parametrize(
    ("judgment", "rating"),
    [
        ("Rating: [[7]]", 7),
        ("[[8.5]]", 8.5),
        ("[[6.]]", 6),
        ("[3] and then [[10]]", 10),
        ("I give it [4].", 4),
        ("[[2]] or [[9]]", 2),
    ],
)
def test_a_rating_is_read_by_fastchats_rule(judgment: str, rating: float):
    assert read_rating(judgment) == rating


@pytest.mark.parametrize(
    "judgment", ["", "7", "[[rating]]", "[[0]]", "[[11]]", "Rating: 5/10", "[[" + "9" * 5000 + "]]"]
)
def test_what_is_no_rating_is_not_read(judgment: str):
    with pytest.raises(UnreadableError):
        read_rating(judgment)


@pytest.mark.parametrize(
    ("judgment", "winner"),
    [("[[A]]", "A"), ("so [[B]]", "B"), ("[[C]]", "tie"), ("[[7,5]]", "A"), ("[[5.5, 8]]", "B"), ("[[6,6.05]]", "tie")],
)
def test_a_winner_is_read_by_fastchats_rule(judgment: str, winner: str):
    assert read_winner(judgment) == winner


def test_a_judgment_without_a_winner_is_not_read():
    with pytest.raises(UnreadableError):
        read_winner("A is better.")


def test_a_judge_prompt_is_filled_as_pythons_format_would():
    template = "{question} {{x}} {answer}"
    values = {"question": "{answer}", "answer": "{question.__class__}"}
    assert JudgePrompt("p", "", template, "[[A]]").fill(values) == template.format(**values)


@pytest.mark.parametrize("template", ["{answer_3}", "{question.__class__}", "{question!r}", "{0}", "{", "a } b"])
def test_a_placeholder_that_is_not_known_is_told(template: str):
    with pytest.raises(InvalidInputError, match="the judge prompt p has"):
        JudgePrompt("p", "", template, "[[A]]").fill({"question": "x"})
