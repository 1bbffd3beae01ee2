"""ZephyrModel and ChatModel in QML, made there or handed over. No window: a QtObject is enough."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.desktop.qt_watching import FRANCE, PARIS, QtCore, application, engine_of, run, spin  # noqa: F401 — a fixture
from tests.desktop.watching import MOST_S, is_gone
from zephyr_local.desktop.qt import ZephyrModel, register_qml
from zephyr_local.desktop.qt_binding import BINDING, QObject, Slot

QtQml: Any = importlib.import_module(f"{BINDING}.QtQml")

PROGRAM = """
import QtQml
import QtQml.Models
import ZephyrLocal 1.0
QtObject {
    id: root
    property ZephyrModel zephyr: %s
    property bool isBusy: zephyr.state === "answering"
    onIsBusyChanged: test.say("busy " + isBusy)
    property Connections connections: Connections {
        target: root.zephyr
        function onFinished(reason) {
            test.say(["finished", reason, zephyr.state, zephyr.model_name, zephyr.n_ctx, zephyr.load_share].join(" "))
            for (let i = 0; i < rows.count; i++)
                test.say([rows.objectAt(i).role, rows.objectAt(i).text, rows.objectAt(i).state].join("|"))
            if (rows.count > 0 && rows.objectAt(0).text.includes("France"))
                zephyr.edit(0, "What is the capital of Italy?")
            else
                zephyr.close()
        }
        function onClosed() { test.end() }
    }
    property Instantiator rows: Instantiator {
        model: ChatModel { model: root.zephyr }
        delegate: QtObject {
            required property string role
            required property string text
            required property string state
            onTextChanged: test.grows(text)
        }
    }
    Component.onCompleted: {
        zephyr.load()
        zephyr.ask("What is the capital of France?")
        %s
    }
}
"""
REFUSED = """
        try { zephyr.ask("and?") } catch (error) { test.say("refused " + error) }
        try { zephyr.new_chat() } catch (error) { test.say("refused " + error) }
        zephyr.regenerate()
        test.say("not reached")
"""


class Test(QObject):
    """What the program talks to."""

    __test__ = False

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []
        self.texts: list[str] = []
        self.loop = QtCore.QEventLoop()

    @Slot(str)
    def say(self, text: str) -> None:
        self.said.append(text)

    @Slot(str)
    def grows(self, text: str) -> None:
        self.texts.append(text)

    @Slot()
    def end(self) -> None:
        self.loop.quit()


def run_program(program: str, own: ZephyrModel | None = None) -> tuple[Test, Any, Any]:
    register_qml()
    test = Test()
    engine = QtQml.QQmlEngine()
    engine.rootContext().setContextProperty("test", test)
    engine.rootContext().setContextProperty("own", own)
    component = QtQml.QQmlComponent(engine)
    component.setData(program.encode(), QtCore.QUrl())
    root = component.create()
    assert root is not None, component.errorString()
    return test, engine, root


SAID = [
    "busy true",
    "busy false",
    "finished stop ready zephyr-tiny 1024 1",
    f"user|{FRANCE}|whole",
    f"assistant|{PARIS}|whole",
    "busy true",
    "busy false",
    "finished stop ready zephyr-tiny 1024 1",
    "user|What is the capital of Italy?|whole",
    "assistant|The capital of Italy is Rome.|whole",
]


@pytest.mark.usefixtures("application")
@pytest.mark.parametrize("where", ["ZephyrModel { }", "own"])
def test_a_chat(where: str) -> None:
    own = ZephyrModel()
    test, engine, root = run_program(PROGRAM % (where, ""), own)
    run(test.loop)
    assert test.said == SAID
    assert PARIS in test.texts
    own.close()
    assert own.wait_closed(MOST_S)
    del root, engine


@pytest.mark.usefixtures("application")
def test_what_cannot_be_done_now_is_thrown(caplog: pytest.LogCaptureFixture) -> None:
    """An exception that left a slot would end the process with PyQt6."""
    own = ZephyrModel()
    test, engine, root = run_program(PROGRAM % ("own", REFUSED), own)
    run(test.loop)
    refused = "refused Error: an answer is still being given. Wait for its end, or stop it."
    assert test.said == [SAID[0], refused, refused, *SAID[1:]]
    assert own.wait_closed(MOST_S)
    del root, engine


@pytest.mark.usefixtures("application")
def test_what_cannot_be_done_now_harms_nobody_where_qml_made_the_model() -> None:
    """PyQt6 does not say which QML engine such a model is of, so there nothing is thrown."""
    test, engine, root = run_program(PROGRAM % ("ZephyrModel { }", REFUSED))
    run(test.loop)
    assert [said for said in test.said if not said.startswith("refused") and said != "not reached"] == SAID
    del root, engine


@pytest.mark.usefixtures("application")
def test_a_model_that_qml_made_ends_with_qml() -> None:
    test, engine, root = run_program(
        """
        import QtQml
        import ZephyrLocal 1.0
        ZephyrModel { onLoaded: test.end(); Component.onCompleted: load() }
        """
    )
    run(test.loop)
    process_id = engine_of(root)
    root.deleteLater()  # as an item whose window is closed
    spin(20)
    assert is_gone(process_id)
    del root, engine


_PAGE_VIEW = """
import re, sys
from pathlib import Path
from PySide6.QtCore import QTimer, QUrl
from PySide6.QtGui import QGuiApplication
from PySide6.QtQml import QQmlComponent, QQmlEngine
from zephyr_local.desktop.qt import register_qml

application = QGuiApplication([])
register_qml()
engine = QQmlEngine()
component = QQmlComponent(engine)
component.setData(re.search(r"```qml\\n(.*?)```", Path(sys.argv[1]).read_text(), re.DOTALL)[1].encode(), QUrl())
view = component.create()
assert view is not None, component.errorString()
rows = view.property("model")

def look():
    texts = [rows.data(rows.index(row, 0)) for row in range(rows.rowCount())]
    if texts[1:] == ["The capital of France is Paris."] and view.property("count") == 2:
        application.exit(7)

timer = QTimer(interval=50)
timer.timeout.connect(look)
timer.start()
QTimer.singleShot(60_000, application.quit)
sys.exit(application.exec())
"""


def test_the_view_of_the_page_shows_a_chat() -> None:
    page = Path(__file__).parent.parent.parent / "docs" / "desktop.md"
    done = subprocess.run(
        [sys.executable, "-c", _PAGE_VIEW, page],
        env=os.environ | {"QT_QPA_PLATFORM": "offscreen"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 7, done.stderr
