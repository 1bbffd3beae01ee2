"""PySide6 and PyQt6: which is taken, that all holds with the other, too, and how a process with each ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.desktop.watching import is_gone

ROOT = Path(__file__).resolve().parent.parent.parent
BINDINGS = ("PySide6", "PyQt6")


def run(code: str, binding: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("QT_API", "DISPLAY")}
    if binding is not None:
        variables["QT_API"] = binding.lower()
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code],
        cwd=ROOT,
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def printed(code: str, binding: str | None = None, **variables: str) -> str:
    """What a program prints that ends as it should and says nothing else."""
    done = run(code, binding, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


# --- which is taken ---

TAKEN = "from zephyr_local.desktop.qt_binding import BINDING; print(BINDING)"
HIDDEN = "import sys; sys.modules.update(dict.fromkeys({!r})); "


@pytest.mark.parametrize(
    ("before", "variables", "binding"),
    [
        ("", {}, "PySide6"),
        ("", {"QT_API": "pyqt6"}, "PyQt6"),
        ("", {"QT_API": "PySide6"}, "PySide6"),
        ("", {"QT_API": "pyqt5"}, "PySide6"),  # said to others
        ("import PyQt6.QtCore; ", {"QT_API": "pyside6"}, "PyQt6"),
        ("import PyQt6; ", {}, "PySide6"),  # which has loaded nothing of Qt
        (HIDDEN.format(["PySide6"]), {}, "PyQt6"),
    ],
)
def test_the_binding_that_is_taken(before: str, variables: dict[str, str], binding: str) -> None:
    assert printed(before + TAKEN, **variables) == binding


@pytest.mark.parametrize(
    ("hidden", "variables", "said"),
    [
        (BINDINGS, {}, 'neither PySide6 nor PyQt6 is installed. Run: pip install "zephyr-local[qt]".'),
        (["PyQt6"], {"QT_API": "pyqt6"}, "QT_API asks for PyQt6, which is not installed. Unset it, or run: pip "),
    ],
)
def test_without_a_binding(hidden: list[str], variables: dict[str, str], said: str) -> None:
    code = (
        HIDDEN.format(list(hidden))
        + """
from zephyr_local import InvalidInputError
try:
    import zephyr_local.desktop.qt
except ImportError as error:
    assert isinstance(error, InvalidInputError)
    print(error)
"""
    )
    assert printed(code, **variables).startswith(said)


def test_a_binding_that_is_broken_says_so_itself() -> None:
    code = """
import importlib.abc, sys
class Broken(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "PySide6.QtCore":
            raise ModuleNotFoundError("No module named 'shiboken6'", name="shiboken6")
sys.meta_path.insert(0, Broken())
import zephyr_local.desktop.qt
"""
    assert run(code).stderr.endswith("ModuleNotFoundError: No module named 'shiboken6'\n")


# --- the other one ---


def test_all_holds_with_pyqt6() -> None:
    """The tests of this process are with PySide6; a process can hold only one."""
    files = [f"tests/desktop/{name}.py" for name in ("test_qt", "test_qt_ends", "test_qt_chat", "test_qt_qml")]
    code = f"import pytest, sys; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', *{files}]))"
    done = run(code, "PyQt6")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


# --- how a process ends ---

BEGUN = """
from zephyr_local import Sampling
from zephyr_local.desktop.qt import ZephyrModel
from zephyr_local.desktop.qt_binding import BINDING, QCoreApplication
import importlib
QtCore = importlib.import_module(BINDING + ".QtCore")
application = QCoreApplication([])
model = ZephyrModel()
model.load()
model.ask("hello", Sampling(temperature=100, top_k=0, top_p=1, seed=1))
loop = QtCore.QEventLoop()
model.piece.connect(loop.quit)
loop.exec()
print(model.engine_process_id, flush=True)
"""


@pytest.mark.parametrize("binding", BINDINGS)
def test_the_applications_end_is_the_engines(binding: str) -> None:
    code = (
        BEGUN
        + """
from tests.desktop.watching import is_there
process_id = model.engine_process_id
QtCore.QTimer.singleShot(0, application.quit)
application.exec()
assert not is_there(process_id)
assert model.state == "closed"
"""
    )
    assert is_gone(int(printed(code, binding)), within_s=0.1)


@pytest.mark.parametrize("binding", BINDINGS)
def test_a_process_ends_that_closes_nothing(binding: str) -> None:
    assert is_gone(int(printed(BEGUN, binding)))


@pytest.mark.parametrize("binding", BINDINGS)
def test_there_may_be_no_application_yet(binding: str) -> None:
    code = """
import time
from zephyr_local.desktop.qt import ChatModel, ZephyrModel, QCoreApplication
model = ZephyrModel()
chat = ChatModel(model)
model.load()
model.ask("What is the capital of France?")
application = QCoreApplication([])
model.finished.connect(lambda reason: print(chat.data(chat.index(1))))
model.finished.connect(model.close)
model.closed.connect(application.quit)
application.exec()
"""
    assert printed(code, binding) == "The capital of France is Paris."


@pytest.mark.parametrize("binding", BINDINGS)
def test_models_in_cycles_are_collected_on_any_thread(binding: str) -> None:
    code = """
import gc, threading
from zephyr_local.desktop.qt import ChatModel, ZephyrModel, QCoreApplication
application = QCoreApplication([])
gc.disable()
workers = []
for _ in range(10):
    model = ZephyrModel()
    model.itself, model.chat = model, ChatModel(model)
    workers.append(model._worker)
    del model
    collector = threading.Thread(target=gc.collect)
    collector.start()
    collector.join()
    application.processEvents()
assert all(worker.wait_closed(30) for worker in workers)
"""
    printed(code, binding)
