"""The errors that zephyr-local raises: each says what is wrong, what the limit is, and what to do about it.

Everything here derives from :class:`ZephyrError`, so an application needs one ``except``. ``exit_code`` is what the
command line leaves with; the codes are documented in ``zephyr-local --help`` and stay as they are.
"""

from __future__ import annotations


class ZephyrError(Exception):
    """Something outside our control is not as it must be.

    ``problem`` names the thing and the limit that it breaks, ``remedy`` what the user can do. Both are whole phrases
    without a final full stop; ``str()`` joins them.
    """

    exit_code = 1

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}. {self.remedy}."


class InvalidInputError(ZephyrError):
    """A value that the caller gave (a flag, a setting, a message) is outside what is allowed."""

    exit_code = 2


class ModelNotFoundError(ZephyrError):
    """There is no model at the path or under the name that was given."""

    exit_code = 3


class ModelFileError(ZephyrError):
    """A GGUF file is damaged, or holds something that this runtime does not load."""


class TemplateError(ZephyrError):
    """A chat cannot be rendered: the template is missing, unknown, or does not fit the messages."""


class CheckpointError(ZephyrError):
    """A checkpoint folder cannot be converted as it stands."""


class OutputError(ZephyrError):
    """An output file cannot be written; whatever stood at its name before is still there."""


class ChatStoreError(ZephyrError):
    """The store of the chats cannot be read or written; the chat itself goes on."""


class ContextExceededError(ZephyrError):
    """A chat needs more tokens than the context holds."""

    exit_code = 5


class EngineError(ZephyrError):
    """llama.cpp could not load or run the model; the message carries what it said."""

    exit_code = 6


class NotEnoughMemoryError(EngineError):
    """The model, its context or a computation does not fit the memory of this machine or of its GPU."""

    exit_code = 4


class HubError(ZephyrError):
    """The model hub could not be reached, refused, or sent something other than it promised."""

    exit_code = 7


class OfflineError(HubError):
    """It would need the network, which this process may not ask."""


class EngineCrashed(EngineError):  # noqa: N818 — the name that applications look for
    """The engine's process ended under a call; the next call starts a new one."""

    def __init__(
        self, problem: str, remedy: str, *, signal: str | None = None, native_log: tuple[str, ...] = ()
    ) -> None:
        super().__init__(problem, remedy)
        self.signal = signal
        """The signal's name, such as ``SIGSEGV``; None where it ended otherwise."""
        self.native_log = native_log
        """The last lines of llama.cpp's log and of the process's stderr, oldest first."""
