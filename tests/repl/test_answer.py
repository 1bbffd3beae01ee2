"""What is kept while an answer is waited for, and what is said where it ends."""

from __future__ import annotations

import io
import os
import signal
import threading
from pathlib import Path

import pytest

from zephyr_local.repl.answer import give_answer
from zephyr_local.repl.conversation import Conversation
from zephyr_local.repl.late_model import LateModel
from zephyr_local.repl.theme import choose_theme
from zephyr_local.repl.view import View
from zephyr_local.settings import EngineSettings, Sampling
from zephyr_local.transcripts.store import ChatStore


class SlowModel(LateModel):
    """Loads until it is told to stop."""

    def __init__(self) -> None:
        self.may_end = threading.Event()
        super().__init__(None, EngineSettings())

    def _load(self) -> None:
        self.may_end.wait(30)
        self._done.set()


@pytest.mark.skipif(os.name == "nt", reason="signals are sent as POSIX has them")
def test_a_question_is_in_the_store_while_the_model_still_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "chats.db"
    model = SlowModel()
    store, reader = ChatStore(path), ChatStore(path)
    conversation = Conversation(model, store, lambda is_bundled: Sampling())
    view = View(choose_theme("none", {}), plain=True, out=io.StringIO(), err=(said := io.StringIO()))
    seen: list[str] = []

    def update(*_: object) -> None:
        seen.extend(turn.message.content for turn in reader.turns(1, all_branches=True))
        os.kill(os.getpid(), signal.SIGINT)  # Ctrl+C, as it is awaited

    monkeypatch.setattr("zephyr_local.repl.view.SlowBar.update", update)
    try:
        came = give_answer(conversation, view, lambda on_prefill: conversation.ask("early", on_prefill), nothing="")
    finally:
        model.may_end.set()
    assert seen[:2] == ["early", ""]
    assert not came
    assert "stopped before the answer began" in said.getvalue()
    assert reader.summaries() == [], "it is the person's again"
