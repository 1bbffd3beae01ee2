"""A run that is killed at any moment goes on: nothing is lost, and nothing that was answered is asked again."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
import zlib
from contextlib import closing
from pathlib import Path

from tests.cli.command import ROOT, isolated
from tests.stand_in_endpoint import Fault, Messages, StandIn

N_KILLS = 50
N_PROMPTS = 60
CONCURRENCY = 3
FAULTS = (Fault.BUSY, Fault.ERROR, Fault.CUT, Fault.DROPPED, Fault.GARBAGE, Fault.ORDER, Fault.LATE)


def answer(messages: Messages) -> str:
    asked = messages[-1]["content"]
    drawn = zlib.crc32(asked.encode())
    n_answers = asked.count("# Answer ")
    if not n_answers:
        return f"A reply, number {drawn}."
    replies = [f"Answer {n}\nRating: {1 + (drawn >> n) % 5}\nReason: drawn." for n in range(1, n_answers + 1)]
    return "\n\n".join(replies)


class Command:
    """`data feedback` of three candidates and a judge at the stand-in."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        folder.mkdir()
        lines = (json.dumps({"prompt": f"Tell me about the number {n}."}) for n in range(N_PROMPTS))
        (folder / "prompts.jsonl").write_text("\n".join(lines))
        tables = [
            f'[{name}]\nurl = "{url}"\nmodel = "{name}"\nretry_wait_s = 0.01\nattempts = 20\n'
            f"concurrency = {CONCURRENCY}\nprice = {{input = 1, output = 1}}\n"
            for name in ("one", "two", "three", "judge")
        ]
        (folder / "models.toml").write_text("\n".join(tables))
        self.output = folder / "rated.jsonl"
        self.ledger = folder / "rated.jsonl.asked" / "asked.sqlite"

    def start(self) -> subprocess.Popen[bytes]:
        candidates = [part for name in ("one", "two", "three") for part in ("--candidate", name)]
        command = [sys.executable, "-m", "zephyr_local", "data", "feedback", "prompts.jsonl", "--models", "models.toml"]
        command += [*candidates, "--judge", "judge", "-o", "rated.jsonl", "--budget", "1000"]
        environment = isolated(self.folder / "home")
        log = (self.folder / "log").open("ab")
        with log:
            return subprocess.Popen(command, cwd=self.folder, env=environment | {"PYTHONPATH": str(ROOT)}, stderr=log)

    def kept(self) -> set[str]:
        if not self.ledger.is_file():
            return set()
        with closing(sqlite3.connect(self.ledger)) as file:
            try:
                return {key for (key,) in file.execute("select key from answers")}
            except sqlite3.OperationalError:  # killed before the table was there
                return set()


def test_fifty_kills_lose_nothing_and_ask_nothing_twice(tmp_path: Path):
    dice = random.Random(11)
    faults = [dice.choice(FAULTS) if dice.random() < 0.15 else None for _ in range(20_000)]
    with StandIn(answer) as undisturbed:
        whole = Command(tmp_path / "undisturbed", undisturbed.url)
        assert whole.start().wait(300) == 0
        n_questions = len(undisturbed.served)
    assert n_questions == N_PROMPTS * (3 + 4)
    with StandIn(answer, lambda number: faults[number], delay_s=lambda _number: 0.01) as stand_in:
        killed = Command(tmp_path / "killed", stand_in.url)
        marks: list[tuple[int, set[str]]] = []  # at each kill: requests that had come, and answers that were kept
        for _ in range(N_KILLS):
            wanted = len(stand_in.served) + dice.randrange(2 * n_questions // N_KILLS)
            process = killed.start()
            while process.poll() is None and len(stand_in.served) < wanted:
                time.sleep(0.001)
            time.sleep(dice.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
            assert process.wait() in (-signal.SIGKILL, 0)
            time.sleep(0.05)  # what it had sent has arrived
            marks.append((len(stand_in.served), killed.kept()))
        assert killed.start().wait(300) == 0
        served = list(stand_in.served)
    assert killed.output.read_bytes() == whole.output.read_bytes()
    for n_served, kept in marks:
        asked_again = {one.key for one in served[n_served:]} & kept
        assert not asked_again
    # An answer that was on its way when the process was killed has to be asked for again: those under way, no more.
    answered = [one.key for one in served if one.answered_at is not None]
    assert len(answered) - n_questions <= N_KILLS * CONCURRENCY * 3
    assert len({n for n, _ in marks}) > N_KILLS // 2  # the kills came at different moments of the work
    with closing(sqlite3.connect(killed.ledger)) as file:
        (n_answers,) = file.execute("select count(*) from answers").fetchone()
        (n_cut_off,) = file.execute("select count(*) from sent").fetchone()
    assert n_answers == n_questions
    assert n_cut_off > 0  # counted against the budget: they may have been billed


def test_ctrl_c_waits_for_the_answers_under_way(tmp_path: Path):
    with StandIn(answer, delay_s=lambda _number: 0.3) as stand_in:
        command = Command(tmp_path / "stopped", stand_in.url)
        process = command.start()
        while len(stand_in.served) < 5:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        answered = stand_in.answered()
        assert set(answered) == command.kept()
        assert len(answered) >= 5
    said = (command.folder / "log").read_text()
    assert "Stopped. The same command goes on" in said
    assert not command.output.exists()
