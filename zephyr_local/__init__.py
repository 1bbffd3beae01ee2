"""zephyr-local: an aligned Mistral on your own machine.

    from zephyr_local import Zephyr

    with Zephyr() as zephyr:
        for piece in zephyr.stream([{"role": "user", "content": "Hello"}]):
            print(piece.text, end="", flush=True)

Everything below is loaded when it is first used: importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zephyr_local.api import Zephyr
    from zephyr_local.async_api import AsyncZephyr
    from zephyr_local.async_chat import AsyncChat
    from zephyr_local.chat import Chat
    from zephyr_local.chat_fit import Dropped, Policy
    from zephyr_local.chat_types import Finish, FinishReason, Message, Piece, Reply, Role, TokenLogprob
    from zephyr_local.child_process import freeze_support
    from zephyr_local.errors import (
        ChatStoreError,
        CheckpointError,
        ContextExceededError,
        EngineCrashed,
        EngineError,
        HubError,
        InvalidInputError,
        ModelFileError,
        ModelNotFoundError,
        NotEnoughMemoryError,
        OfflineError,
        OutputError,
        TemplateError,
        ZephyrError,
    )
    from zephyr_local.memory.estimate import MemoryEstimate
    from zephyr_local.model_list import LocalModel, local_models
    from zephyr_local.model_store.pull import PullProgress
    from zephyr_local.pulling import pull_model
    from zephyr_local.settings import EngineSettings, Sampling
    from zephyr_local.sizing import estimate_memory

    __version__: str

__all__ = [
    "AsyncChat",
    "AsyncZephyr",
    "Chat",
    "ChatStoreError",
    "CheckpointError",
    "ContextExceededError",
    "Dropped",
    "EngineCrashed",
    "EngineError",
    "EngineSettings",
    "Finish",
    "FinishReason",
    "HubError",
    "InvalidInputError",
    "LocalModel",
    "MemoryEstimate",
    "Message",
    "ModelFileError",
    "ModelNotFoundError",
    "NotEnoughMemoryError",
    "OfflineError",
    "OutputError",
    "Piece",
    "Policy",
    "PullProgress",
    "Reply",
    "Role",
    "Sampling",
    "TemplateError",
    "TokenLogprob",
    "Zephyr",
    "ZephyrError",
    "__version__",
    "estimate_memory",
    "freeze_support",
    "local_models",
    "pull_model",
]

_HOMES = {
    "api": ("Zephyr",),
    "async_api": ("AsyncZephyr",),
    "async_chat": ("AsyncChat",),
    "chat": ("Chat",),
    "chat_fit": ("Dropped", "Policy"),
    "chat_types": ("Finish", "FinishReason", "Message", "Piece", "Reply", "Role", "TokenLogprob"),
    "child_process": ("freeze_support",),
    "model_list": ("LocalModel", "local_models"),
    "memory.estimate": ("MemoryEstimate",),
    "model_store.pull": ("PullProgress",),
    "pulling": ("pull_model",),
    "settings": ("EngineSettings", "Sampling"),
    "sizing": ("estimate_memory",),
    "errors": (
        "ChatStoreError",
        "CheckpointError",
        "ContextExceededError",
        "EngineCrashed",
        "EngineError",
        "HubError",
        "InvalidInputError",
        "ModelFileError",
        "ModelNotFoundError",
        "NotEnoughMemoryError",
        "OfflineError",
        "OutputError",
        "TemplateError",
        "ZephyrError",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name == "__version__":
        value: object = _installed_version()
    elif name in _HOME_OF:
        value = getattr(import_module(f"zephyr_local.{_HOME_OF[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value  # the next access does not come here
    return value


def _installed_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("zephyr-local")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "0+unknown"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
