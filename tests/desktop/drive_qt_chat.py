"""Drives the real window of examples/desktop/qt_chat with mouse and keyboard: one scenario a process.

``python drive_qt_chat.py SCENARIO DATA_FOLDER [MODEL]``; a scenario that fails says so on stderr and ends with 1. What
it prints are lines ``name value`` for the test.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "examples" / "desktop" / "qt_chat"), str(ROOT)]

from application import run  # noqa: E402 — pyright: ignore[reportMissingImports]
from options import Options  # noqa: E402 — pyright: ignore[reportMissingImports]
from PySide6.QtCore import QEventLoop, QObject, QPoint, Qt, QTimer  # noqa: E402
from PySide6.QtGui import QGuiApplication  # noqa: E402
from PySide6.QtTest import QTest  # noqa: E402
from PySide6.QtWidgets import QAbstractButton, QFileDialog, QWidget  # noqa: E402
from window import ChatWindow  # noqa: E402 — pyright: ignore[reportMissingImports]

from zephyr_local import EngineSettings  # noqa: E402

FRANCE = "What is the capital of France?"
PARIS = "The capital of France is Paris."
LONG = "x " * 3000
MOST_S = 60.0
ENTER = Qt.Key.Key_Return
LEFT = Qt.MouseButton.LeftButton


class Watch(QObject):
    """How long the event loop was away, by a timer of 2 ms."""

    def __init__(self) -> None:
        super().__init__()
        self.worst_ms = 0.0
        self._last_s = time.perf_counter()
        self._timer = QTimer(self)
        self._timer.setTimerType(Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(self._tick)
        self._timer.start(2)

    def _tick(self) -> None:
        now_s = time.perf_counter()
        self.worst_ms = max(self.worst_ms, 1000 * (now_s - self._last_s))
        self._last_s = now_s

    def take(self) -> float:
        worst_ms, self.worst_ms = self.worst_ms, 0.0
        self._last_s = time.perf_counter()
        return worst_ms


def pause(wait_ms: int) -> None:
    """Let the window work; QTest.qWait would sleep in between, which is what is to be measured."""
    loop = QEventLoop()
    QTimer.singleShot(wait_ms, loop.quit)
    loop.exec()


def until(what: str, holds: Callable[[], object], within_s: float = MOST_S) -> float:
    """Wait until something holds; how many seconds that took."""
    begin_s = time.monotonic()
    while not holds():
        assert time.monotonic() - begin_s < within_s, f"not within {within_s} s: {what}"
        pause(5)
    return time.monotonic() - begin_s


def tell(name: str, value: object) -> None:
    """Tell the test something."""
    sys.stdout.write(f"{name} {value}\n")
    sys.stdout.flush()


def click(widget: QWidget) -> None:
    assert widget.isVisible(), widget.accessibleName()
    assert widget.isEnabled(), widget.accessibleName()
    QTest.mouseClick(widget, LEFT)


def named(parent: QWidget, text: str) -> QAbstractButton:
    """The last button that is visible and has a text."""
    buttons = [
        button for button in parent.findChildren(QAbstractButton) if button.text() == text and button.isVisible()
    ]
    assert buttons, text
    return buttons[-1]


def texts(window: ChatWindow) -> list[str]:
    return [turn.text for turn in window.chat.turns]


def is_ready(window: ChatWindow) -> bool:
    return window.model.state == "ready"


def type_in(window: ChatWindow, text: str) -> None:
    QTest.keyClicks(window.input, text)


def ask(window: ChatWindow, question: str) -> None:
    """Type a question, press Enter and wait for the answer's end."""
    type_in(window, question)
    QTest.keyClick(window.input, ENTER)
    assert window.model.state == "answering"
    until("an answer", lambda: window.model.state != "answering")
    pause(50)


def begin_long_answer(window: ChatWindow) -> None:
    """Ask a model of random weights, whose answers mostly have no end, and wait until there is some of one."""
    for _ in range(10):
        window.input.clear()
        type_in(window, "hello")
        QTest.keyClick(window.input, ENTER)
        until("some of the answer", lambda: window.model.state != "answering" or len("".join(texts(window))) > 25)
        if window.model.state == "answering":
            return
        click(named(window, "New chat"))  # one that ended soon, by chance
        until("an empty chat", lambda: texts(window) == [])
    raise AssertionError("all answers were short")


def engine_of(window: ChatWindow) -> int:
    process_id = window.model.engine_process_id
    assert process_id is not None
    return process_id


# --- scenarios ---


def asking(window: ChatWindow) -> None:
    watch = Watch()
    until("the load", lambda: is_ready(window))
    tell("stall_loading_ms", round(watch.take(), 1))
    assert "zephyr-tiny" in window.windowTitle()
    assert not window.send_button.isEnabled()
    type_in(window, "What is the capital")
    QTest.keyClick(window.input, ENTER, Qt.KeyboardModifier.ShiftModifier)
    assert window.input.toPlainText() == "What is the capital\n"
    QTest.keyClick(window.input, Qt.Key.Key_Backspace)
    type_in(window, " of France?")
    click(window.send_button)
    assert window.stop_button.isVisible()
    assert not window.send_button.isVisible()
    assert window.input.toPlainText() == ""
    until("the answer", lambda: is_ready(window))
    tell("stall_answering_ms", round(watch.take(), 1))
    assert texts(window) == [FRANCE, PARIS]
    user, answer = window.chat.turns
    assert user.mapTo(window, QPoint(user.width(), 0)).x() > window.width() / 2
    assert answer.isVisible()
    click(named(window.chat, "Copy"))
    assert QGuiApplication.clipboard().text() == PARIS
    click(named(window.chat, "Regenerate"))
    until("another answer", lambda: is_ready(window))
    assert texts(window) == [FRANCE, PARIS]
    ask(window, "and of Japan?")
    assert len(texts(window)) == 4
    assert "Tokyo" in texts(window)[3]
    for button in window.findChildren(QAbstractButton):
        assert button.accessibleName() or button.text() or not button.isVisible(), button
    window.close()


def saving_and_opening(window: ChatWindow) -> None:
    until("the load", lambda: is_ready(window))
    path = Path(sys.argv[2]) / "mine.json"
    ask(window, FRANCE)
    click(named(window, "Save…"))
    choose_file(window, path)
    until("the file", path.exists)
    until("its name", lambda: str(path) in window.status.text)
    click(named(window, "New chat"))
    until("an empty chat", lambda: texts(window) == [])
    click(named(window, "Open…"))
    choose_file(window, path)
    until("the chat", lambda: texts(window) == [FRANCE, PARIS])
    ask(window, "and of Japan?")
    assert "Tokyo" in texts(window)[3]
    window.close()


def choose_file(window: ChatWindow, path: Path) -> None:
    until("a dialog", lambda: window.findChildren(QFileDialog))
    dialog = window.findChildren(QFileDialog)[-1]
    dialog.selectFile(str(path))
    pause(50)
    dialog.accept()


def resuming(window: ChatWindow) -> None:
    """The chat that the application was closed with is there again, cut as it was."""
    until("the load", lambda: is_ready(window))
    until("the chat", lambda: len(texts(window)) == 2)
    question, answer = texts(window)
    tell("resumed", f"{len(question)} {len(answer)}")
    window.close()


def resuming_damaged(window: ChatWindow) -> None:
    """What was kept is no chat: it is said, not lost, and another chat begins."""
    until("the load", lambda: is_ready(window))
    until("the banner", window.banner.isVisible)
    assert "last-chat.json" in window.banner.text
    assert not window.banner.restart_button.isVisible()
    ask(window, FRANCE)
    assert texts(window) == [FRANCE, PARIS]
    assert not window.banner.isVisible()
    window.close()


def choosing(window: ChatWindow) -> None:
    until("the load", lambda: is_ready(window))
    before = engine_of(window)
    watch = Watch()
    click(window.model_button)
    from chooser import ModelChooser  # pyright: ignore[reportMissingImports]

    until("the dialog", lambda: window.findChildren(ModelChooser))
    dialog = window.findChildren(ModelChooser)[0]
    until("the models", lambda: dialog.table.rowCount() > 0)
    tell("stall_choosing_ms", round(watch.take(), 1))
    assert dialog.table.item(0, 0).text() == "zephyr-tiny"
    assert dialog.table.item(0, 4).text() == "fits"
    place = dialog.table.visualItemRect(dialog.table.item(0, 0)).center()
    port = dialog.table.viewport()
    QTest.mouseClick(port, LEFT, pos=place)
    assert dialog.load_button.isEnabled()
    QTest.mouseDClick(port, LEFT, pos=place)
    # By its path it is another model to the worker than by no path: it is loaded again.
    until("the load", lambda: is_ready(window) and engine_of(window) != before)
    ask(window, FRANCE)
    assert texts(window) == [FRANCE, PARIS]
    click(window.model_button)
    until("the dialog", lambda: window.findChildren(ModelChooser))
    window.findChildren(ModelChooser)[0].reject()
    window.close()  # while models are still looked for


def stopping_a_load(window: ChatWindow) -> None:
    assert window.model.state == "loading"
    pause(20)
    click(window.status.stop_button)
    until("its end", lambda: window.model.state == "empty")
    assert window.status.text == "The load was stopped"
    assert not window.banner.isVisible()
    type_in(window, FRANCE)
    assert not window.send_button.isEnabled()
    window.close()


def stopping(window: ChatWindow) -> None:
    """While the chat is read: by the mouse, and by Escape."""
    until("the load", lambda: is_ready(window))
    for how, press in (
        ("mouse", lambda: click(window.stop_button)),
        ("escape", lambda: QTest.keyClick(window.input, Qt.Key.Key_Escape)),
    ):
        window.input.setPlainText(LONG)
        QTest.keyClick(window.input, ENTER)
        until("the reading", lambda: window.status.text.startswith("Reading "))
        assert " of 3,0" in window.status.text or " of 6,0" in window.status.text, window.status.text
        press()
        tell(f"stop_by_{how}_ms", round(1000 * until("Send", window.send_button.isVisible), 1))
        assert window.input.toPlainText() == LONG.strip()
        assert texts(window) == []
        assert not window.banner.isVisible()
    window.close()


def closing(window: ChatWindow) -> None:
    """In the middle of an answer."""
    until("the load", lambda: is_ready(window))
    begin_long_answer(window)
    tell("engine", engine_of(window))
    begin_s = time.perf_counter()
    window.close()
    tell("close_ms", round(1000 * (time.perf_counter() - begin_s), 1))
    assert not window.isVisible()


def crashing(window: ChatWindow) -> None:
    until("the load", lambda: is_ready(window))
    os.kill(engine_of(window), signal.SIGKILL)  # while nobody waits
    until("the banner", window.banner.isVisible)
    assert window.banner.text.startswith("The engine stopped: "), window.banner.text
    assert "SIGKILL" in window.banner.text
    ask(window, FRANCE)
    assert texts(window) == [FRANCE, PARIS]
    assert not window.banner.isVisible()
    os.kill(engine_of(window), signal.SIGKILL)
    until("the banner", window.banner.isVisible)
    click(window.banner.restart_button)
    until("a restart", lambda: is_ready(window))
    assert not window.banner.isVisible()
    ask(window, "and of Japan?")
    assert "Tokyo" in texts(window)[3]
    window.close()


def crashing_in_an_answer(window: ChatWindow) -> None:
    until("the load", lambda: is_ready(window))
    begin_long_answer(window)
    os.kill(engine_of(window), signal.SIGKILL)
    until("the end", lambda: window.model.state == "crashed")
    until("the banner", lambda: window.banner.text.startswith("The engine stopped: ") and window.banner.isVisible())
    begun = texts(window)[1]
    assert len(begun) > 20
    pause(50)
    click(named(window.chat, "Continue"))
    until("its going on", lambda: len(texts(window)[1]) > len(begun) or is_ready(window))
    assert texts(window)[1].startswith(begun)
    assert not window.banner.isVisible()
    if window.stop_button.isVisible():
        click(window.stop_button)
    until("Send", window.send_button.isVisible)
    assert window.input.toPlainText() == ""  # something came of the question
    window.close()


def failing(window: ChatWindow) -> None:
    """There is no such model."""
    until("the banner", window.banner.isVisible)
    assert "no-such-model" in window.banner.text
    assert window.banner.text.endswith("zephyr-local pull zephyr-7b-beta."), window.banner.text  # the remedy
    assert window.model.state == "empty"
    assert not window.send_button.isEnabled()
    window.load(None)
    until("another load", lambda: is_ready(window))
    assert not window.banner.isVisible()
    window.close()


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        asking,
        saving_and_opening,
        resuming,
        resuming_damaged,
        choosing,
        stopping_a_load,
        stopping,
        closing,
        crashing,
        crashing_in_an_answer,
        failing,
    )
}


def main() -> int:
    scenario, folder, *rest = sys.argv[1:]
    errors: list[BaseException] = []

    def drive(window: ChatWindow) -> None:
        try:
            assert QTest.qWaitForWindowExposed(window)
            SCENARIOS[scenario](window)
        except BaseException as error:
            errors.append(error)
            traceback.print_exc()
            shown = (window.model.state, texts(window), window.status.text, window.banner.text)
            sys.stderr.write(f"{shown}\n")
            window.close()

    settings = EngineSettings(n_ctx=8192, n_threads=1) if rest and Path(rest[0]).exists() else EngineSettings()
    options = Options(rest[0] if rest else None, settings, Path(folder), resumes=scenario.startswith("resuming"))
    run(options, lambda window: QTimer.singleShot(0, lambda: drive(window)))
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
