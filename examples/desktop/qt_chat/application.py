"""From the options to a window, and to its end."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from keeping import ChatKeeper
from options import Options
from PySide6.QtCore import QStandardPaths, QThreadPool
from PySide6.QtWidgets import QApplication
from self_test import SelfTest
from window import ChatWindow

from zephyr_local.desktop.qt import ZephyrModel

_PATIENCE_MS: Final = 5000


def run(options: Options, on_shown: Callable[[ChatWindow], object] | None = None) -> int:
    """Show the window until it is closed and the model has ended; the process's exit status."""
    app = QApplication(sys.argv[:1])
    app.setApplicationName("zephyr-local-chat")
    app.setStyle("Fusion")  # looks alike everywhere and takes the palette's colours
    app.setQuitOnLastWindowClosed(False)  # the model's end is waited for
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl+C on the terminal; the engine ends with this process
    with ExitStack() as stack:
        folder = options.data_folder
        if folder is None and options.question is not None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))  # a test leaves the user's chat alone
        if folder is None:
            folder = Path(QStandardPaths.writableLocation(QStandardPaths.StandardLocation.AppDataLocation))
        model = ZephyrModel(app)
        model.closed.connect(app.quit)
        keeper = ChatKeeper(model, folder)
        window = ChatWindow(model, keeper, options.settings)
        test = None
        if options.question is not None:
            test = SelfTest(window, options.question, options.screenshot)
        window.show()
        if options.resumes:
            keeper.resume()
        window.load(options.model)
        if on_shown is not None:
            on_shown(window)
        app.exec()
        QThreadPool.globalInstance().waitForDone(_PATIENCE_MS)  # a chooser may still be looking for models
        return 0 if test is None else test.exit_code
