"""What a chat tells of itself while it happens, so that it can be kept."""

from __future__ import annotations

from typing import Protocol

from zephyr_local.chat_fit import Policy
from zephyr_local.chat_types import Finish, Message


class Journal(Protocol):
    """Is told of each change before anyone sees it. Nodes are places in ``ChatTree.nodes``.

    An exception comes out of what changed the chat. One answer at a time: ``begin``, ``add`` …, ``end``.
    """

    def begin(self, parent: int | None, question: Message | None, answer_start: str) -> None:
        """An answer begins: to ``question``, a new node below ``parent``; None: to ``parent``, which is a question."""

    def add(self, text: str) -> None:
        """The answer goes on."""

    def end(self, kept: bool, finish: Finish | None) -> None:
        """The answer is over. ``kept``: it is the newest node; else it is taken back, and a new question with it."""

    def select(self, leaf: int | None) -> None:
        """Another branch is on."""

    def drop(self, after: int, summary: str | None) -> None:
        """The model is no longer shown what stands up to the answer ``after``, but this summary."""

    def configure(self, system: str | None, policy: Policy, reserve_tokens: int | None) -> None:
        """One of these has changed."""

    def clear(self) -> None:
        """All turns are forgotten."""
