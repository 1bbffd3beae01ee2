"""AsyncZephyr in a Qt application, by qasync: python qasync_chat.py [--self-test QUESTION].

Qt's event loop is asyncio's then: the window awaits the model's pieces itself, and Stop cancels the task that does.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from contextlib import aclosing

from PySide6.QtWidgets import QApplication, QLineEdit, QPlainTextEdit, QPushButton, QVBoxLayout, QWidget
from qasync import run  # type: ignore[import-untyped]  # after PySide6: it takes the binding that is imported

from zephyr_local import AsyncChat, AsyncZephyr, ZephyrError, freeze_support


class ChatWindow(QWidget):
    def __init__(self) -> None:
        super().__init__()
        self._chat: AsyncChat | None = None
        self.zephyr: AsyncZephyr | None = None
        self.answering: asyncio.Task[None] | None = None
        self.view, self.line, self.stop = QPlainTextEdit(), QLineEdit(), QPushButton("Stop")
        column = QVBoxLayout(self)
        for widget in (self.view, self.line, self.stop):
            column.addWidget(widget)
        self.line.returnPressed.connect(self.ask)
        self.stop.clicked.connect(lambda: self.answering and self.answering.cancel())

    def ask(self) -> None:
        if self.answering is None or self.answering.done():
            self.answering = asyncio.create_task(self._answer(self.line.text()))
            self.line.clear()

    async def _answer(self, question: str) -> None:
        self.view.appendPlainText(f"> {question}\n")
        try:
            chat = self._chat or await self._load()
            async with aclosing(chat.stream(question)) as pieces:
                async for piece in pieces:
                    self.view.insertPlainText(piece.text)
        except asyncio.CancelledError:
            self.view.insertPlainText(" [stopped]")
        except ZephyrError as error:  # after a crash the next question starts the engine again
            self.view.insertPlainText(str(error))

    async def _load(self) -> AsyncChat:
        zephyr = AsyncZephyr(on_progress=lambda share: self.setWindowTitle(f"Loading: {share:.0%}"))
        await zephyr.load()  # where this is cancelled, or fails, the next question makes another one
        self.zephyr, self._chat = zephyr, zephyr.chat(policy="drop_oldest")
        return self._chat


async def main(application: QApplication, question: str | None) -> None:
    application.setQuitOnLastWindowClosed(False)  # the loop ends when this function does
    closed = asyncio.Event()
    application.lastWindowClosed.connect(closed.set)
    window = ChatWindow()
    window.show()
    if question is not None:
        window.line.setText(question)
        window.ask()
        await asyncio.wait([window.answering] if window.answering else [])
        print(window.view.toPlainText())
        window.close()
    await closed.wait()
    if window.answering is not None and window.answering.cancel():
        await asyncio.wait([window.answering])
    if window.zephyr is not None:
        await window.zephyr.close()


if __name__ == "__main__":
    freeze_support()  # for an application that is frozen
    parser = argparse.ArgumentParser()
    parser.add_argument("--self-test", metavar="QUESTION", help="print the answer and end")
    run(main(QApplication(sys.argv[:1]), parser.parse_args().self_test))
