"""AI feedback by the command: candidates of every kind, a judge at a stand-in endpoint, UltraFeedback's records."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import ROOT, isolated, zephyr_local
from tests.stand_in_endpoint import Fault, Messages, StandIn
from zephyr_local.chat_types import Message
from zephyr_local.train.data.records import Record
from zephyr_local.train.data.ultrafeedback import ASPECTS, read_ultrafeedback
from zephyr_local.train.feedback.feedback import shown_order
from zephyr_local.train.feedback.prompts import Prompt

N = 10


def shown(messages: Messages) -> list[str]:
    """The answers that a judge is shown, in their order."""
    text = messages[-1]["content"]
    return re.findall(r"^# Answer \d+\n\n(.*?)\n\n(?=# )", text, re.DOTALL | re.MULTILINE)


def worth(text: str) -> int:
    return 1 + zlib.crc32(text.encode()) % 5


def judging(messages: Messages) -> str:
    """Rates each answer by its text alone; when it is no judge, says something of its own."""
    answers = shown(messages)
    if not answers:
        return f"Reply {zlib.crc32(json.dumps(messages).encode())}"
    return "\n\n".join(f"Answer {n}\nRating: {worth(a)}\nReason: of {a}" for n, a in enumerate(answers, 1))


def write_prompts(folder: Path, n: int = N) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"Tell me of {k}.", "source": "made"}) for k in range(n)))
    return path


def write_models(folder: Path, url: str, *names: str, more: str = "") -> Path:
    path = folder / "models.toml"
    tables = [f'[{name}]\nurl = "{url}"\nmodel = "{name}"\nretry_wait_s = 0.01\n{more}' for name in (*names, "judge")]
    path.write_text("\n".join(tables))
    return path


def feedback(folder: Path, *arguments: str | Path, name: str = "rated.jsonl") -> subprocess.CompletedProcess[str]:
    return zephyr_local("data", "feedback", *arguments, "-o", folder / name, home=folder)


def records(folder: Path, name: str = "rated.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def candidates(*names: str | Path) -> list[str | Path]:
    return [part for name in names for part in ("--candidate", name)]


def test_four_kinds_of_candidates_are_rated(tmp_path: Path):
    ready = tmp_path / "ready.jsonl"
    ready.write_text(
        "\n".join(json.dumps({"prompt": f"Tell me of {k}.", "output": f"Ready {k}"}) for k in range(N - 1))
    )
    with StandIn(judging) as stand_in:
        models = write_models(tmp_path, stand_in.url, "one", more='system = "Be kind."\n')
        who = candidates("one", f"{stand_in.url}#two", "bundled", ready)
        report = tmp_path / "report.json"
        done = feedback(
            tmp_path, write_prompts(tmp_path), *who, "--models", models, "--judge", "judge", "--report", report
        )
        assert done.returncode == 0, done.stderr
        bodies = [one.body for one in stand_in.served]
    assert len(bodies) == 2 * N + len(ASPECTS) * N
    asked_one = next(body for body in bodies if body["model"] == "one")
    assert asked_one["messages"][0] == {"role": "system", "content": "Be kind."}
    made = records(tmp_path)
    assert [record["instruction"] for record in made] == [f"Tell me of {k}." for k in range(N)]
    assert made[0]["models"] == ["one", "two", "zephyr-tiny", "ready"]
    assert made[-1]["models"] == ["one", "two", "zephyr-tiny"]  # nothing is ready for the last
    for record in made:
        for completion in record["completions"]:
            expected = {
                aspect: {"Rating": str(worth(completion["response"])), "Rationale": f"of {completion['response']}"}
                for aspect in ASPECTS
            }
            assert completion["annotations"] == expected
            assert completion["fine-grained_score"] == worth(completion["response"])
    facts = json.loads(report.read_text())
    assert (facts["records"], facts["answers"]) == (N, 4 * N - 1)
    assert facts["asked"][0]["asked"] == N


def test_its_output_is_what_the_next_step_reads(tmp_path: Path):
    with StandIn(judging) as stand_in:
        models = write_models(tmp_path, stand_in.url, "one", "two", "three", "four")
        who = candidates("one", "two", "three", "four")
        # Four models at one stand-in that get the same question say the same, but for their system turn.
        text = models.read_text()
        for name in ("one", "two", "three", "four"):
            text = text.replace(f"[{name}]", f'[{name}]\nsystem = "You are {name}."')
        models.write_text(text)
        assert feedback(tmp_path, write_prompts(tmp_path), *who, "--models", models, "--judge", "judge").returncode == 0
    (record, *_) = records(tmp_path)
    scored = read_ultrafeedback(Record("x:1", record), "mean")
    assert sorted(a.score or 0 for a in scored.answers) == sorted(worth(c["response"]) for c in record["completions"])
    pairs = tmp_path / "pairs.jsonl"
    done = zephyr_local("data", "preferences", tmp_path / "rated.jsonl", "-o", pairs, home=tmp_path)
    assert done.returncode == 0, done.stderr
    for line in pairs.read_text().splitlines():
        pair = json.loads(line)
        assert worth(pair["chosen"][0]["content"]) > worth(pair["rejected"][0]["content"])


def test_the_order_of_answers_is_drawn_anew_and_is_the_same_each_time():
    names = ["a", "b", "c", "d"]
    prompts = [Prompt((Message("user", f"{n}"),), f"{n}", "s") for n in range(60)]
    orders = [tuple(shown_order(p, aspect, names, 0)) for p in prompts for aspect in ASPECTS]
    assert orders == [tuple(shown_order(p, aspect, names, 0)) for p in prompts for aspect in ASPECTS]
    firsts = [order[0] for order in orders]
    assert all(40 <= firsts.count(name) <= 80 for name in names)  # of 240
    assert len({tuple(shown_order(prompts[0], aspect, names, 0)) for aspect in ASPECTS}) > 1
    assert orders != [tuple(shown_order(p, aspect, names, 1)) for p in prompts for aspect in ASPECTS]


def test_samples_of_one_model_and_a_draw_of_many(tmp_path: Path):
    with StandIn(lambda m: judging(m) if shown(m) else f"Reply {len(stand_in.served)}") as stand_in:
        models = write_models(tmp_path, stand_in.url, "one", "two", "three")
        many = [*candidates("one"), "--samples", "3", "--models", models, "--judge", "judge"]
        assert feedback(tmp_path, write_prompts(tmp_path), *many).returncode == 0
        assert records(tmp_path)[0]["models"] == ["one #1", "one #2", "one #3"]
        assert {one.body["seed"] for one in stand_in.served if one.body["model"] == "one"} == {0, 1, 2}
        drawn = [*candidates("one", "two", "three"), "--draw", "2", "--models", models, "--judge", "judge"]
        assert feedback(tmp_path, write_prompts(tmp_path), *drawn, name="drawn.jsonl").returncode == 0
    made = [tuple(record["models"]) for record in records(tmp_path, "drawn.jsonl")]
    assert all(len(models) == 2 for models in made)
    assert len(set(made)) > 1


def test_a_criterion_that_nobody_could_read_is_not_rated(tmp_path: Path):
    def mute(messages: Messages) -> str:
        hidden = "as sure of itself" in messages[-1]["content"] and "Tell me of 3." in messages[-1]["content"]
        return "I would rather not." if hidden else judging(messages)

    with StandIn(mute) as stand_in:
        models = write_models(tmp_path, stand_in.url, "one")
        arguments = [*candidates("one"), "--samples", "2", "--models", models, "--judge", "judge"]
        done = feedback(tmp_path, write_prompts(tmp_path), *arguments)
    assert done.returncode == 0
    assert "not rated by honesty: 1 of 10 prompts" in done.stderr
    assert "unreadable, 3 x: not each of the 2 answers once in the judgment" in done.stderr
    ratings = {r["instruction"]: r["completions"][0]["annotations"]["honesty"]["Rating"] for r in records(tmp_path)}
    assert ratings.pop("Tell me of 3.") == "N/A"
    assert "N/A" not in ratings.values()


def test_a_prompt_that_is_turned_down_gets_no_record(tmp_path: Path):
    with StandIn(judging, lambda number: Fault.BAD_REQUEST if number == 0 else None) as stand_in:
        models = write_models(tmp_path, stand_in.url, "one", more="concurrency = 1\n")
        arguments = [*candidates("one"), "--samples", "2", "--models", models, "--judge", "judge"]
        done = feedback(tmp_path, write_prompts(tmp_path), *arguments)
    assert done.returncode == 0
    assert "dropped 1: fewer than two answers" in done.stderr
    assert len(records(tmp_path)) == N - 1


@pytest.mark.parametrize("candidate", ["one", "bundled"])
def test_where_the_budget_ends_what_is_complete_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, candidate: str
):
    from zephyr_local.cli.main import run
    from zephyr_local.train.feedback import feedback as module

    monkeypatch.setattr(module, "PROMPTS_A_BATCH", 3)
    price = "price = {input = 1000, output = 1000}\nmax_tokens = 100\n"
    output, partial = tmp_path / "rated.jsonl", tmp_path / "rated.jsonl.asked" / "complete.jsonl"
    output.write_text("what was there before\n")
    with StandIn(judging) as stand_in:
        models = write_models(tmp_path, stand_in.url, "one", more=price)
        arguments = ["data", "feedback", str(write_prompts(tmp_path)), "--candidate", candidate, "--samples", "2"]
        arguments += ["--models", str(models), "--judge", "judge", "-o", str(output)]
        assert run([*arguments, "--budget", "5", "--report", str(tmp_path / "report.json")]) == 1
        first = [json.loads(line) for line in partial.read_text().splitlines()]
        assert 0 < len(first) < N
        assert all("N/A" not in json.dumps(record) for record in first)
        assert output.read_text() == "what was there before\n"
        report = json.loads((tmp_path / "report.json").read_text())
        assert report["records"] == len(first)
        assert report["ended_by"].startswith("the budget of $5 is reached")
        assert run([*arguments, "--budget", "1000"]) == 0
        whole = records(tmp_path)
        assert [record for record in whole if record in first] == first
        assert len(whole) == N
        assert not partial.exists()
        assert len(stand_in.served) == (N * 2 if candidate == "one" else 0) + N * 4


def test_a_budget_that_is_over_at_once_leaves_nothing(tmp_path: Path):
    with StandIn(judging) as stand_in:
        models = write_models(tmp_path, stand_in.url, "one", more="price = {input = 1, output = 1}\n")
        arguments = [*candidates("one"), "--samples", "2", "--models", models, "--judge", "judge", "--budget", "0"]
        done = feedback(tmp_path, write_prompts(tmp_path), *arguments)
        assert not stand_in.served
    assert done.returncode == 1
    assert "the budget of $0 is reached" in done.stderr
    assert not (tmp_path / "rated.jsonl").exists()
    assert not list((tmp_path / "rated.jsonl.asked").glob("complete*"))


def test_no_input_is_written_over_and_none_is_missing(tmp_path: Path):
    prompts = write_prompts(tmp_path)
    before = prompts.read_bytes()
    arguments = ["--candidate", "bundled", "--samples", "2", "--judge", "bundled"]
    done = feedback(tmp_path, prompts, *arguments, name="prompts.jsonl")
    assert done.returncode == 2
    assert "is an input, too" in done.stderr
    assert prompts.read_bytes() == before
    missing = feedback(tmp_path, prompts, tmp_path / "none.jsonl", *arguments)
    assert "there is no file" in missing.stderr
    folder = tmp_path / "folder.jsonl"
    folder.mkdir()
    assert "is a folder" in feedback(tmp_path, prompts, *arguments, name="folder.jsonl").stderr


def test_answers_to_other_prompts_are_told_before_anybody_is_asked(tmp_path: Path):
    ready = tmp_path / "ready.jsonl"
    ready.write_text(json.dumps({"prompt": "Something else?", "output": "x"}))
    with StandIn(judging) as stand_in:
        models = write_models(tmp_path, stand_in.url, "one")
        arguments = [*candidates("one", ready), "--models", models, "--judge", "judge"]
        done = feedback(tmp_path, write_prompts(tmp_path), *arguments)
        assert not stand_in.served
    assert "ready has no answer to any of the first 10 prompts" in done.stderr


def test_on_a_full_disk_nothing_is_lost(tmp_path: Path):
    with StandIn(judging) as stand_in:
        models = write_models(tmp_path, stand_in.url, "one")
        arguments = [*candidates("one"), "--samples", "2", "--models", str(models), "--judge", "judge"]
        assert feedback(tmp_path, write_prompts(tmp_path), *arguments).returncode == 0
        whole = (tmp_path / "rated.jsonl").read_bytes()
        (tmp_path / "rated.jsonl").write_text("before")
        n = len(stand_in.served)
        # What the ledger has, it has; no file may grow beyond a block of the output's.
        command = [sys.executable, "-m", "zephyr_local", "data", "feedback", str(write_prompts(tmp_path)), *arguments]
        limited = f"ulimit -f 2; exec {shlex.join([*map(str, command), '-o', str(tmp_path / 'rated.jsonl')])}"
        environment = isolated(tmp_path) | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, env=environment, cwd=ROOT)
        assert done.returncode == 1
        assert "cannot be" in done.stderr
        assert (tmp_path / "rated.jsonl").read_text() == "before"
        assert feedback(tmp_path, write_prompts(tmp_path), *arguments).returncode == 0
        assert len(stand_in.served) == n
    assert (tmp_path / "rated.jsonl").read_bytes() == whole


def test_inputs_without_prompts_are_an_error(tmp_path: Path):
    (tmp_path / "none.jsonl").write_text('{"text": "x"}\n')
    done = feedback(tmp_path, tmp_path / "none.jsonl", "--candidate", "bundled", "--samples", "2", "--judge", "bundled")
    assert done.returncode == 2
    assert "no prompt got two answers" in done.stderr
    assert not (tmp_path / "rated.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to do"),
        (["--candidate", "bundled", "--judge", "bundled"], "each prompt would get 1 answers"),
        (["--candidate", "bundled", "--candidate", "bundled", "--judge", "bundled"], "two candidates have one name"),
        (["--candidate", "bundled", "--samples", "2", "--judge", "x.jsonl"], "a file of answers cannot judge"),
        (["--candidate", "x.jsonl", "--samples", "2", "--judge", "bundled"], "has one answer to a prompt"),
        (["--candidate", "bundled", "--samples", "2", "--draw", "3", "--judge", "bundled"], "would get 3 of 2"),
        (["--candidate", "http://h/v1#m", "--samples", "2", "--judge", "bundled", "--budget", "1"], "price of m"),
    ],
)
def test_what_cannot_be_done_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str):
    monkeypatch.delenv("HF_HUB_OFFLINE")  # or an endpoint beyond this machine is refused for that
    done = feedback(tmp_path, write_prompts(tmp_path), *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert not (tmp_path / "rated.jsonl").exists()


def test_the_templates_can_be_copied_and_changed(tmp_path: Path):
    mine = tmp_path / "mine"
    done = zephyr_local("data", "feedback", "--copy-templates", mine, home=tmp_path)
    assert done.returncode == 0
    honesty = mine / "honesty.toml"
    honesty.write_text(honesty.read_text().replace("# The criterion", "# THE CRITERION"))
    with StandIn(judging) as stand_in:
        models = write_models(tmp_path, stand_in.url, "one")
        arguments = [*candidates("one"), "--samples", "2", "--models", models, "--judge", "judge", "--templates", mine]
        assert feedback(tmp_path, write_prompts(tmp_path, 2), *arguments).returncode == 0
        texts = [one.body["messages"][-1]["content"] for one in stand_in.served]
    assert sum("# THE CRITERION" in text for text in texts) == 2
    again = zephyr_local("data", "feedback", "--copy-templates", mine, home=tmp_path)
    assert again.returncode == 2
    assert "exists" in again.stderr
