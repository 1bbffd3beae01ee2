"""The window of benchmarks/desktop.py: ``ours`` or ``peer``, and the path of a model. Prints one JSON object."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from PySide6.QtCore import QObject, Qt, QTimer, Signal
from PySide6.QtWidgets import QApplication, QPlainTextEdit

N_CTX = 2048
ANSWER_TOKENS = 64
QUESTION = "Tell me more about the sea. " * 50
LONG = "Tell me more about the mountains. " * 180


class Window(QPlainTextEdit):
    """Shows what comes, and measures how late a timer of 1 ms is."""

    def __init__(self) -> None:
        super().__init__()
        self.resize(800, 600)
        self.gaps_s: list[float] = []
        self._last_s = time.perf_counter()
        self._timer = QTimer(self, timerType=Qt.TimerType.PreciseTimer, interval=1)
        self._timer.timeout.connect(self._tick)
        self._timer.start()

    def _tick(self) -> None:
        now_s = time.perf_counter()
        self.gaps_s.append(now_s - self._last_s)
        self._last_s = now_s

    def taken(self) -> list[float]:
        """The gaps since the last call, in ms, sorted."""
        gaps, self.gaps_s = self.gaps_s, []
        return sorted(gap * 1000 for gap in gaps)


class Peer(QObject):
    """llama-cpp-python on a thread."""

    loaded = Signal()
    piece = Signal(str)
    reading = Signal()
    finished = Signal()

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path, self._stop = path, threading.Event()

    def load(self) -> None:
        threading.Thread(target=self._load, daemon=True).start()

    def _load(self) -> None:
        from llama_cpp import Llama

        self._llama = Llama(self._path, n_ctx=N_CTX, verbose=False)
        self.loaded.emit()

    def ask(self, text: str) -> None:
        self._stop.clear()
        threading.Thread(target=self._answer, args=(text,), daemon=True).start()

    def _answer(self, text: str) -> None:
        messages = [{"role": "user", "content": text}]
        self.reading.emit()
        pieces = self._llama.create_chat_completion(messages, stream=True, max_tokens=ANSWER_TOKENS, temperature=0)
        for chunk in pieces:
            self.piece.emit(chunk["choices"][0]["delta"].get("content", ""))
            if self._stop.is_set():
                break
        self.finished.emit()

    def stop(self) -> None:
        self._stop.set()

    def close(self) -> None:
        pass


def ours(path: str) -> QObject:
    from zephyr_local import EngineSettings, Sampling
    from zephyr_local.desktop.qt import ZephyrModel

    class Ours(ZephyrModel):
        reading = Signal()

        def load(self) -> None:
            super().load(path, EngineSettings(n_ctx=N_CTX), template="zephyr")

        def ask(self, text: str) -> None:
            self.new_chat()
            super().ask(text, Sampling(temperature=0, max_tokens=ANSWER_TOKENS))

    model = Ours()
    model.prefill_progress.connect(lambda done, total: model.reading.emit())
    return model


class Run:
    """One step after the other, each begun by the signal of the one before."""

    def __init__(self, model: QObject, window: Window) -> None:
        self.model, self.window = model, window
        self.found: dict[str, float] = {}
        self.begun_s = 0.0
        self.next: Callable[[], None] = self.answer
        model.loaded.connect(lambda *_: self.next())
        model.finished.connect(lambda *_: self.next())
        model.piece.connect(window.insertPlainText)
        model.reading.connect(self.reading)
        self.is_to_stop = False

    def load(self) -> None:
        self.window.taken()
        self.begun_s = time.perf_counter()
        self.model.load()

    def answer(self) -> None:
        self.found["loaded_s"] = time.perf_counter() - self.begun_s
        self.found["load_ms"] = self.window.taken()[-1]
        self.next, self.begun_s = self.read, time.perf_counter()
        self.model.ask(QUESTION)

    def read(self) -> None:
        gaps = self.window.taken()
        self.found |= {"answered_s": time.perf_counter() - self.begun_s, "answer_ms": gaps[-1]}
        self.found["p99_ms"] = gaps[int(len(gaps) * 0.99)]
        self.next, self.is_to_stop = self.end, True
        self.model.ask(LONG)

    def reading(self) -> None:
        if self.is_to_stop:
            self.is_to_stop = False
            QTimer.singleShot(300, self.stop)

    def stop(self) -> None:
        self.begun_s = time.perf_counter()
        self.model.stop()

    def end(self) -> None:
        self.found["stop_ms"] = (time.perf_counter() - self.begun_s) * 1000
        print(json.dumps({key: round(value, 3) for key, value in self.found.items()}), flush=True)
        self.model.close()
        QApplication.quit()


def main() -> None:
    whose, path = sys.argv[1], str(Path(sys.argv[2]))
    application = QApplication([])
    window = Window()
    window.show()
    run = Run(Peer(path) if whose == "peer" else ours(path), window)
    QTimer.singleShot(1000, run.load)  # once the window stands
    sys.exit(application.exec())


if __name__ == "__main__":
    main()
