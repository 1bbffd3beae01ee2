"""A model that loads on a thread while the person types, and stands where a loaded one stands."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from zephyr_local.chat_types import Message, OnPrefill
from zephyr_local.errors import EngineError
from zephyr_local.settings import BUNDLED_MODEL_SAMPLING, EngineSettings, Sampling

if TYPE_CHECKING:
    from zephyr_local.api import Zephyr
    from zephyr_local.piece_stream import PieceStream

_WAIT_S = 0.1


class _Stop(Exception):  # noqa: N818 — nothing is wrong
    """The load is not wanted any more."""


class LoadFailed(Exception):  # noqa: N818 — carries the error that ends the program
    """The model that a chat begins with could not be loaded."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class LateModel:
    """What :class:`zephyr_local.chat.Chat` asks of a model; each of its methods waits for the load."""

    def __init__(
        self,
        path: Path | None,
        settings: EngineSettings,
        template: str | None = None,
        *,
        on_change: Callable[[], object] = lambda: None,
    ) -> None:
        """``path`` None: the bundled model. ``on_change`` is called on the thread that loads."""
        self.path, self.settings, self.template = path, settings, template
        self.on_change = on_change
        self.default_sampling = BUNDLED_MODEL_SAMPLING if path is None else Sampling()
        self.progress: float = 0.0
        """The share of the load that is done."""
        self.on_wait: Callable[[float], object] = lambda share: None
        """Takes the share that is done, where the model is awaited inside a call; may raise to end that."""
        self.error: Exception | None = None
        """Why it could not be loaded."""
        self._zephyr: Zephyr | None = None
        self._closing = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._load, name="zephyr-local-load", daemon=True)
        self._starting = threading.Lock()

    def start(self) -> None:
        """Begin to load, where that was not done yet."""
        with self._starting:
            if self._thread.ident is None and not self._closing:
                self._thread.start()

    @property
    def label(self) -> str:
        """The model's name once it is loaded, else its file's."""
        if self._zephyr is not None:
            return self._zephyr.model_name
        return "zephyr-tiny" if self.path is None else self.path.name

    @property
    def loaded(self) -> Zephyr | None:
        """The model, once it is loaded."""
        return self._zephyr

    @property
    def is_done(self) -> bool:
        """Whether the load is over, well or not."""
        return self._done.is_set()

    def wait(self, on_wait: Callable[[float], object] | None = None) -> Zephyr:
        """The loaded model; ``on_wait`` takes the share that is done while it is awaited. Raises what the load did."""
        self.start()
        while not self._done.wait(_WAIT_S):
            (on_wait or self.on_wait)(self.progress)
        if self.error is not None:
            raise self.error
        if self._zephyr is None or self._closing:
            raise EngineError("the model was closed", "Load it again")
        return self._zephyr

    @property
    def n_ctx(self) -> int:
        return self.wait().n_ctx

    def stream(
        self,
        messages: tuple[Message, ...],
        sampling: Sampling | None = None,
        *,
        answer_start: str = "",
        on_prefill: OnPrefill | None = None,
    ) -> PieceStream:
        return self.wait().stream(messages, sampling, answer_start=answer_start, on_prefill=on_prefill)

    def count_tokens(self, messages: tuple[Message, ...]) -> int:
        return self.wait().count_tokens(messages)

    def close(self) -> None:
        """End the load, or free the model. Closing twice is fine."""
        with self._starting:
            self._closing = True
            if self._thread.ident is None:  # and never will be
                self._done.set()
        self._done.wait()
        if self._zephyr is not None:
            self._zephyr.close()

    def _load(self) -> None:
        try:
            from zephyr_local.api import Zephyr  # here, beside the prompt, and not before it

            self._zephyr = Zephyr(self.path, self.settings, template=self.template, on_progress=self._progressed)
        except _Stop:
            pass
        except Exception as error:  # raised where it is waited for
            self.error = error
        finally:
            self._done.set()
            self.on_change()

    def _progressed(self, share: float) -> None:
        if self._closing:
            raise _Stop
        self.progress = share
        self.on_change()
