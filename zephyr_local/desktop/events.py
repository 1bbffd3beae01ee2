"""What a :class:`zephyr_local.desktop.worker.ModelWorker` tells: one frozen type for each thing that happens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from zephyr_local.chat_fit import Dropped
from zephyr_local.chat_types import Finish, FinishReason, Message
from zephyr_local.errors import EngineCrashed, ZephyrError


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """``share``: how much of the load is done, 0 to 1."""

    share: float


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model can be asked now; also where one is ready again after a crash."""

    model_name: str
    n_ctx: int
    notices: tuple[str, ...]
    """Lines for the user about what was assumed."""


@dataclass(frozen=True, slots=True)
class LoadStopped:
    """A load was ended by ``stop``, or by another load."""

    has_model: bool
    """Whether the model before it is still there, since the load had not come so far."""


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """How many tokens of the chat are computed, and of how many, while the first piece is waited for."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class TextArrived:
    """More of the answer: whole characters, never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is over, and the chat can be asked again."""

    reason: FinishReason
    finish: Finish | None
    """What it cost; None where it was stopped."""
    turns: tuple[Message, ...]
    """All turns of the chat now."""
    question: str | None
    """The question, where it was stopped before anything of an answer came: it is no turn, and can be edited."""


@dataclass(frozen=True, slots=True)
class Failed:
    """What was asked for could not be done; the chat can be asked again."""

    of: Literal["load", "answer", "chat"]
    """What it is the end of: a load, an answer, or the reading or writing of a chat's file."""
    error: ZephyrError
    turns: tuple[Message, ...]
    question: str | None
    """The question, where nothing of an answer came: it is no turn, and can be asked again."""


@dataclass(frozen=True, slots=True)
class Crashed:
    """The engine's process ended by itself; an answer under way fails besides. The next question starts it again."""

    error: EngineCrashed


@dataclass(frozen=True, slots=True)
class ChatOpened:
    """Another chat is on, new or read from a file."""

    turns: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class ChatSaved:
    """The chat lies in a file."""

    path: str


@dataclass(frozen=True, slots=True)
class Closed:
    """The model is freed and its process has ended; nothing comes after this."""


Event = (
    LoadProgress
    | Loaded
    | LoadStopped
    | PrefillProgress
    | TextArrived
    | Finished
    | Failed
    | Crashed
    | ChatOpened
    | ChatSaved
    | Dropped
    | Closed
)
