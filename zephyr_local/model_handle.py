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
from zephyr_local.engine.client import EngineClient, ModelPlace
from zephyr_local.errors import EngineCrashed, InvalidInputError
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
        self.default_sampling = BUNDLED_MODEL_SAMPLING if is_bundled else Sampling()
        """How answers are sampled where they are not told."""
        locate = _place_of(bundled_model_path() if path is None or is_bundled else path, settings, template)
        self._client = EngineClient(locate, settings, isolated=isolated)
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
    def is_running(self) -> bool:
        """Whether the engine runs and has the model; not before it is loaded, nor after a crash."""
        return self._client.is_running

    @property
    def on_crash(self) -> Callable[[EngineCrashed], object] | None:
        """Is told when the engine's process ends by itself, also while no call waits; on a thread of its own."""
        return self._client.on_crash

    @on_crash.setter
    def on_crash(self, on_crash: Callable[[EngineCrashed], object] | None) -> None:
        self._client.on_crash = on_crash

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


def _place_of(
    path: str | os.PathLike[str], settings: EngineSettings, template: str | os.PathLike[str] | None
) -> Callable[[], ModelPlace]:
    """What tells where a model is: that of a path at once, since the current folder may change, of a name when asked.

    A name is looked for among all models on this machine, which takes a moment.
    """
    file, given = Path(path), _template_place(template)
    if not isinstance(path, str) or (path and file.exists()):  # the path of an empty text is the current folder's
        place = ModelPlace(str(file.absolute()), *given)
        return lambda: place
    name = path
    found: list[ModelPlace] = []

    def locate() -> ModelPlace:
        from zephyr_local.model_store.library import assumed_template, resolve  # which a path need not wait for

        if not found:  # after a crash the engine gets the same file again
            resolved = resolve(name, settings)
            of_name = given if template is not None else _template_place(assumed_template(resolved))
            found.append(ModelPlace(str(resolved.path.absolute()), *of_name))
        return found[0]

    return locate


def _template_place(template: str | os.PathLike[str] | None) -> tuple[str | None, bool]:
    """A template's name or its absolute path, and whether it is a path."""
    if template is None:
        return None, False
    if template == "zephyr":
        return "zephyr", False
    return str(Path(template).absolute()), True


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
