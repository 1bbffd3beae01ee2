"""What ``Zephyr`` and ``AsyncZephyr`` have in common: a model's engine, its facts, and the requests that go to it."""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from zephyr_local.chat_types import Message, Piece, parse_messages
from zephyr_local.data import bundled_model_path
from zephyr_local.engine import protocol
from zephyr_local.engine.client import EngineClient
from zephyr_local.errors import InvalidInputError
from zephyr_local.settings import BUNDLED_MODEL_SAMPLING, EngineSettings, Sampling, require_kind

MessageLike = Message | Mapping[str, object]


class ModelHandle:
    """A model in an engine. Any thread may use it; answers run side by side, ``EngineSettings.n_parallel`` of them."""

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        settings: EngineSettings | None = None,
        *,
        template: str | os.PathLike[str] | None = None,
        isolated: bool = True,
    ) -> None:
        settings = EngineSettings() if settings is None else settings
        require_kind(settings, EngineSettings, "settings")
        require_kind(isolated, bool, "isolated")
        is_bundled = path is None or _is_bundled(path)
        file, assumed = (bundled_model_path(), None) if path is None or is_bundled else _model_file(path, settings)
        template = assumed if template is None else template
        self.default_sampling = BUNDLED_MODEL_SAMPLING if is_bundled else Sampling()
        """How answers are sampled where they are not told."""
        is_file = template is not None and template != "zephyr"
        name = None if template is None else str(Path(template).absolute()) if is_file else os.fspath(template)
        self._client = EngineClient(str(file.absolute()), settings, (name, is_file), isolated=isolated)
        self._loaded: protocol.Loaded | None = None
        _open_models.add(self)

    @property
    def model_name(self) -> str:
        """What the model calls itself, else its file's name."""
        return self._facts.model_name

    @property
    def notices(self) -> tuple[str, ...]:
        """Lines for the user about what was assumed when the model was loaded."""
        return self._facts.notices

    @property
    def n_ctx(self) -> int:
        """Tokens of context: a chat and its answer together. Answers that run side by side share them."""
        return self._facts.n_ctx

    @property
    def engine_process_id(self) -> int | None:
        """The engine's process; None where it runs in this one, or has crashed and was not started again yet."""
        return self._client.process_id

    @property
    def _facts(self) -> protocol.Loaded:
        if self._loaded is None:
            raise InvalidInputError("the model is not loaded", "Enter it with `async with`, or await load()")
        return self._loaded

    def __del__(self) -> None:
        if hasattr(self, "_client"):
            self._client.close()

    def _parsed(self, messages: Iterable[MessageLike]) -> tuple[Message, ...]:
        self._client.require_usable()
        return parse_messages(messages)

    def _generate(
        self, messages: Iterable[MessageLike], sampling: Sampling | None, answer_start: str = ""
    ) -> Callable[[int], protocol.Request]:
        parsed, chosen = self._parsed(messages), self.default_sampling if sampling is None else sampling
        require_kind(chosen, Sampling, "sampling")
        begun = require_text(answer_start)
        return lambda request_id: protocol.Generate(request_id, parsed, chosen, begun)


def _is_bundled(path: str | os.PathLike[str]) -> bool:
    """Whether a text is the bundled model's name, and no file's."""
    if not isinstance(path, str) or Path(path).exists():
        return False
    from zephyr_local.model_store.names import is_bundled_name  # which a path need not wait for

    return is_bundled_name(path)


def _model_file(path: str | os.PathLike[str], settings: EngineSettings) -> tuple[Path, str | None]:
    """The file at a path; where there is none and a text may be a name, the model of that name on this machine.

    With it the template that the name tells, where the file brings none.
    """
    file = Path(path)
    if not isinstance(path, str) or (path and file.exists()):  # the path of an empty text is the current folder's
        return file, None
    from zephyr_local.model_store.library import assumed_template, resolve  # which a path need not wait for

    resolved = resolve(path, settings)
    return resolved.path, assumed_template(resolved)


def piece_of(event: protocol.Event) -> Piece | None:
    """What an application sees of an event of an answer; None for progress."""
    if isinstance(event, protocol.TextEvent):
        return Piece(event.text, logprobs=event.logprobs)
    if isinstance(event, protocol.Finished):
        return Piece(event.text, event.finish, event.logprobs)
    return None


def require_text(text: object) -> str:
    """``text``, or what is wrong with it."""
    if not isinstance(text, str):
        raise InvalidInputError(f"the text is of type {type(text).__name__}", "Give a string")
    return text


_open_models: weakref.WeakSet[ModelHandle] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    # A thread inside native code while the interpreter tears itself down ends in a crash.
    for model in list(_open_models):
        model._client.close()
