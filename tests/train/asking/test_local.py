"""A local GGUF asked through our engine: side by side, kept, and never loaded for nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gguf_builder import write_reciting_model
from zephyr_local.chat_types import Message
from zephyr_local.errors import ModelNotFoundError
from zephyr_local.train.asking.asker import Refused
from zephyr_local.train.asking.local import LocalModel, fingerprint
from zephyr_local.train.asking.models import ModelsFile, ModelSpec
from zephyr_local.train.asking.request import Request
from zephyr_local.train.asking.session import Questions, Session

SENTENCE = "Rating: five, with a reason for it."


def questions(n: int) -> list[Request]:
    return [Request((Message("user", f"question {number}"),), temperature=0.0, max_tokens=60) for number in range(n)]


def test_a_local_model_answers_and_is_not_loaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = write_reciting_model(tmp_path, SENTENCE)
    spec = ModelsFile.read(None).find(str(model))
    with Session(tmp_path / "asked") as session:
        assert session.ask(Questions(spec, questions(6), "x"), str) == [SENTENCE] * 6
        assert session.tallies[0].prompt_tokens > 60

    def never(*_: object, **__: object) -> None:
        raise AssertionError("loaded for answers that are there")

    monkeypatch.setattr("zephyr_local.train.asking.local.Zephyr", never)
    with Session(tmp_path / "asked") as session:
        assert session.ask(Questions(spec, questions(6), "x"), str) == [SENTENCE] * 6


def test_another_model_under_the_same_name_is_asked_anew(tmp_path: Path):
    first = fingerprint(write_reciting_model(tmp_path, SENTENCE))
    assert fingerprint(write_reciting_model(tmp_path, SENTENCE)) == first
    assert fingerprint(write_reciting_model(tmp_path, SENTENCE.replace("five", "four"))) != first


def test_a_chat_that_does_not_fit_is_turned_down_and_the_others_go_on(tmp_path: Path):
    model = write_reciting_model(tmp_path, SENTENCE)
    spec = ModelSpec(name="m", gguf=str(model), n_ctx=256, concurrency=1)
    long = Request((Message("user", "no end " * 400),), temperature=0.0, max_tokens=60)
    with Session(tmp_path / "asked") as session:
        first, second = session.ask(Questions(spec, [long, *questions(1)], "x"), str)
    assert isinstance(first, Refused)
    assert second == SENTENCE
    larger = ModelSpec(name="m", gguf=str(model), n_ctx=4096, concurrency=1)
    with Session(tmp_path / "asked") as session:
        assert session.ask(Questions(larger, [long, *questions(1)], "x"), str) == [SENTENCE] * 2


def test_a_file_that_is_not_there_is_told(tmp_path: Path):
    with pytest.raises(ModelNotFoundError, match="there is no file"):
        LocalModel(ModelSpec(name="m", gguf=str(tmp_path / "none.gguf")))
