"""ZephyrModel's end: closed, dropped, destroyed, on whatever thread; no engine is left."""
# ruff: noqa: F811 — fixtures are imported, and named as parameters

from __future__ import annotations

import gc

import pytest

from tests.desktop.qt_watching import (
    BABBLE,
    FRANCE,
    PARIS,
    Heard,
    QtCore,
    application,  # noqa: F401 — a fixture
    destroy,
    engine_of,
    heard,  # noqa: F401 — a fixture
    run,
    spin,
)
from tests.desktop.watching import MOST_S, is_gone
from zephyr_local import EngineError
from zephyr_local.desktop.qt import ZephyrModel
from zephyr_local.desktop.qt_binding import QCoreApplication, QObject, Slot


def test_close_ends_the_engine(heard: Heard) -> None:
    model = heard.model
    model.load()
    heard.until("loaded")
    process_id = engine_of(model)
    model.ask("hello", BABBLE)
    heard.until("piece")
    model.close()
    assert model.state == "closed"
    before, _ = heard.until("closed")
    assert ("finished", "cancelled") in before
    assert [call[1] for call in before if call[0] == "state_changed"] == ["closed"]
    assert is_gone(process_id, within_s=0.5)  # it was waited for
    assert model.wait_closed(MOST_S)
    assert model.engine_process_id is None
    model.close()
    model.stop()
    for wish in (lambda: model.ask(FRANCE), model.load, model.restart, model.new_chat, lambda: model.save("x.json")):
        with pytest.raises(EngineError, match="closed"):
            wish()
    heard.no_more()


@pytest.mark.usefixtures("application")
def test_a_model_that_is_dropped_is_closed() -> None:
    process_id, worker = _answering_without_a_name()
    gc.collect()
    assert worker.wait_closed(MOST_S)
    assert is_gone(process_id)
    spin(50)


def _answering_without_a_name() -> tuple[int, object]:
    heard = Heard(ZephyrModel())
    heard.model.load()
    heard.model.ask("hello", BABBLE)
    heard.until("piece")
    process_id, worker = engine_of(heard.model), heard.model._worker
    for name in ("_loop", "calls"):  # what the connections hold
        delattr(heard, name)
    del heard.model
    return process_id, worker


@pytest.mark.usefixtures("application")
def test_a_model_whose_parent_is_destroyed_is_closed() -> None:
    parent = QObject()
    heard = Heard(ZephyrModel(parent))
    heard.model.load()
    heard.model.ask("hello", BABBLE)
    heard.until("piece")
    model, process_id = heard.model, engine_of(heard.model)
    destroy(parent)
    assert model.wait_closed(MOST_S)
    assert is_gone(process_id)
    spin(50)
    for wish in (lambda: model.ask(FRANCE), model.load, model.regenerate):
        with pytest.raises(EngineError, match="closed"):
            wish()
    model.stop()
    model.close()


class Elsewhere(QObject):
    """A model on another thread, which answers one question there and is closed."""

    def __init__(self, is_moved: bool) -> None:
        super().__init__()
        self.thread_of_it = QtCore.QThread()
        self.heard: Heard | None = Heard(ZephyrModel()) if is_moved else None
        if self.heard is not None:
            self.heard.model.moveToThread(self.thread_of_it)
        self.moveToThread(self.thread_of_it)
        self.thread_of_it.started.connect(self.begin)
        self.text = ""

    @Slot()
    def begin(self) -> None:
        self.heard = self.heard or Heard(ZephyrModel())
        model = self.heard.model
        assert model.thread() == self.thread_of_it
        model.piece.connect(self.add)
        model.finished.connect(model.close)
        model.closed.connect(self.thread_of_it.quit)
        model.load()
        model.ask(FRANCE)

    @Slot(str)
    def add(self, text: str) -> None:
        self.text += text


@pytest.mark.parametrize("is_moved", [False, True])
def test_a_model_on_another_thread(application: QCoreApplication, is_moved: bool) -> None:
    elsewhere = Elsewhere(is_moved)
    thread = elsewhere.thread_of_it
    loop = QtCore.QEventLoop()
    thread.finished.connect(loop.quit)
    thread.start()
    try:
        run(loop)
    finally:
        thread.quit()
        thread.wait()
    assert elsewhere.text == PARIS
    assert elsewhere.heard is not None
    assert elsewhere.heard.is_on_thread == {True}
    assert elsewhere.heard.model.wait_closed(MOST_S)
