"""The turns of a chat with everything that was ever regenerated or edited: a tree, and which of its branches is on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from zephyr_local.chat_types import Message


@dataclass(frozen=True, slots=True)
class Node:
    """A turn, and the place in :attr:`ChatTree.nodes` of the one before it; None: it begins a chat."""

    parent: int | None
    message: Message


@dataclass(frozen=True, slots=True)
class Siblings:
    """The alternatives at one place of a chat, oldest first."""

    messages: tuple[Message, ...]
    current: int | None
    """Which of them is in the chat; None at the place after the last turn."""


@dataclass(frozen=True, slots=True)
class Branch:
    """One way through a chat."""

    place: int
    """Its last answer, for :meth:`zephyr_local.chat_state.ChatState.go_to`."""
    turns: tuple[Message, ...]


@dataclass(slots=True)
class ChatTree:
    """Questions and answers, alternating from every root on; what is in it is never changed, only added to.

    A parent stands before its children, so there are no cycles. A question is added together with an answer: every
    leaf is one.
    """

    nodes: list[Node] = field(default_factory=list)
    leaf: int | None = None
    """The last answer of the branch that is on; None: before the first question."""
    cuts: dict[int, str | None] = field(default_factory=dict)
    """Answers after which the model is shown a chat, what stands before being dropped, and the summary of that."""

    def path(self, leaf: int | None) -> list[int]:
        """The nodes from the root to ``leaf``."""
        found: list[int] = []
        while leaf is not None:
            found.append(leaf)
            leaf = self.nodes[leaf].parent
        return found[::-1]

    def turns(self, path: Sequence[int]) -> tuple[Message, ...]:
        return tuple(self.nodes[node].message for node in path)

    def children(self, parent: int | None) -> list[int]:
        """What follows a node, oldest first."""
        return [index for index, node in enumerate(self.nodes) if node.parent == parent]

    def newest_leaf(self, node: int) -> int:
        """The answer that was reached last below ``node``."""
        newest = {below.parent: index for index, below in enumerate(self.nodes)}
        while node in newest:
            node = newest[node]
        return node

    def add(self, parent: int | None, *messages: Message) -> int:
        """Let turns follow each other after ``parent``; returns the last one's node.

        They come at once: who saves the chat meanwhile finds no question without its answer.
        """
        first = len(self.nodes)
        self.nodes.extend(
            [Node(first + after - 1 if after else parent, message) for after, message in enumerate(messages)]
        )
        return len(self.nodes) - 1

    def cut(self, path: Sequence[int]) -> tuple[int, str | None]:
        """How many of a path's turns are dropped, and their summary."""
        for index in reversed(range(len(path))):
            if path[index] in self.cuts:
                return index + 1, self.cuts[path[index]]
        return 0, None

    def branch(self, path: Sequence[int]) -> ChatTree:
        """A tree of this one path."""
        nodes = [Node(index - 1 if index else None, message) for index, message in enumerate(self.turns(path))]
        cuts = {index: self.cuts[node] for index, node in enumerate(path) if node in self.cuts}
        return ChatTree(nodes, len(nodes) - 1 if nodes else None, cuts)
