"""All of a chat but the waiting: its turns and branches, what of them is sent, and the answer that is being given."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final, Generic, Protocol, Self, TypeVar, get_args

from zephyr_local.chat_file import ChatRecord, dump_chat, parse_chat
from zephyr_local.chat_fit import Asked, Dropped, Policy, Room, Steps, fit, system_message
from zephyr_local.chat_journal import Journal
from zephyr_local.chat_tree import Branch, ChatTree, Siblings
from zephyr_local.chat_types import Message, Piece, ReplyParts
from zephyr_local.errors import InvalidInputError
from zephyr_local.settings import Sampling, require_kind

_COUNT: Final = "Count from 0; -1 is the last turn"


class Model(Protocol):
    """What the state asks of a model: nothing that waits."""

    @property
    def n_ctx(self) -> int: ...

    @property
    def default_sampling(self) -> Sampling: ...


_ModelT = TypeVar("_ModelT", bound=Model)


class ChatState(Generic[_ModelT]):
    """What ``Chat`` and ``AsyncChat`` have in common.

    Nothing that was said is lost: an answer that is given again and a question that is edited leave the old one, and
    all that followed it, as a branch (:meth:`siblings`, :meth:`select`). Only :meth:`clear` forgets.
    """

    def __init__(
        self,
        zephyr: _ModelT,
        *,
        system: str | None = None,
        sampling: Sampling | None = None,
        policy: Policy = "stop",
        reserve_tokens: int | None = None,
    ) -> None:
        """``policy`` says what happens when the chat and ``reserve_tokens`` for the answer no longer fit the context.

        ``stop`` raises ContextExceededError; ``drop_oldest`` no longer sends the oldest turns, ``summarise`` sends what
        the model makes of them instead; both report it (:attr:`drops`). Without ``reserve_tokens`` it is the sampling's
        ``max_tokens``, at most half of the context, and without these the smaller of 256 and a quarter of the context.
        """
        if sampling is not None:
            require_kind(sampling, Sampling, "sampling")
        self.zephyr = zephyr
        self.journal: Journal | None = None
        """Is told of everything that happens to the chat, such as one of :mod:`zephyr_local.transcripts`."""
        self.sampling = sampling
        """How answers are sampled where a call does not say; None: as the model does by default."""
        self.on_drop: Callable[[Dropped], object] | None = None
        """Is told of every drop, before the answer begins."""
        self._system: str | None = None
        self._policy: Policy = policy
        self._reserve_tokens: int | None = None
        self.system = system
        self.policy = policy
        self.reserve_tokens = reserve_tokens
        self._drops: list[Dropped] = []
        self._tree = ChatTree()
        self._answering = threading.Lock()  # held from an answer's first piece to its end, maybe by several threads
        self._asked: tuple[list[int], Message] | None = None  # the turns before and the question, while it is answered

    @property
    def system(self) -> str | None:
        """The system prompt; it may change between answers."""
        return self._system

    @system.setter
    def system(self, system: str | None) -> None:
        self._system = None if system is None else _text(system, "the system prompt")
        self._configured()

    @property
    def policy(self) -> Policy:
        return self._policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        if policy not in get_args(Policy):
            raise InvalidInputError(f"policy is {policy!r}", f"Use one of {', '.join(get_args(Policy))}")
        self._policy = policy
        self._configured()

    @property
    def reserve_tokens(self) -> int | None:
        return self._reserve_tokens

    @reserve_tokens.setter
    def reserve_tokens(self, tokens: int | None) -> None:
        if tokens is not None and (not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1):
            raise InvalidInputError(f"reserve_tokens is {tokens!r}", "Give a whole number above 0, or leave it out")
        self._reserve_tokens = tokens
        self._configured()

    @property
    def turns(self) -> tuple[Message, ...]:
        """All turns of the current branch, the dropped ones too; while an answer is given, up to its question."""
        return self._now()[1]

    @property
    def messages(self) -> tuple[Message, ...]:
        """The system prompt, if any, and all turns."""
        return (*system_message(self.system, None), *self.turns)

    @property
    def sent(self) -> tuple[Message, ...]:
        """What the model is shown of :attr:`messages`: without the dropped turns, and with their summary."""
        path, turns = self._now()
        start, summary = self._tree.cut(path)
        return (*system_message(self.system, summary), *turns[start:])

    @property
    def drops(self) -> tuple[Dropped, ...]:
        """What was dropped since this chat was made or loaded, oldest first, in whatever branch."""
        return tuple(self._drops)

    def clear(self) -> None:
        """Forget all turns of all branches; the system prompt stays."""
        self._require_idle()
        self._tree = ChatTree()
        self._drops.clear()
        if self.journal is not None:
            self.journal.clear()

    def undo(self) -> tuple[Message, Message]:
        """Go back to before the last question; returns it and its answer, which stay as a branch.

        ``select(len(chat.turns), -1)`` brings back what was undone last.
        """
        self._require_idle()
        path = self._tree.path(self._tree.leaf)
        if not path:
            raise InvalidInputError("the chat has no turns to undo", "Ask something first")
        self._go_to(path[-3] if len(path) > 2 else None)
        question, answer = self._tree.turns(path[-2:])
        return question, answer

    def siblings(self, index: int) -> Siblings:
        """The alternatives at turn ``index``; at ``len(turns)``, what has followed here and was undone."""
        nodes, current = self._alternatives(index)
        return Siblings(self._tree.turns(nodes), None if current is None else nodes.index(current))

    def select(self, index: int, which: int) -> None:
        """Go over to alternative ``which`` of :meth:`siblings`, and on to the newest answer that followed it."""
        self._require_idle()
        nodes, _ = self._alternatives(index)
        self._go_to(self._tree.newest_leaf(nodes[_index(which, len(nodes), "alternative", "See siblings()")]))

    @property
    def place(self) -> int | None:
        """Where the chat stands: its last answer, numbered as in :meth:`branches`; None before the first."""
        return self._tree.leaf

    def branches(self) -> tuple[Branch, ...]:
        """All ways through the chat, oldest first: one for each answer that nothing follows, and the current one."""
        tree = self._tree
        inner = {node.parent for node in tree.nodes}
        ends = [index for index in range(len(tree.nodes)) if index not in inner or index == tree.leaf]
        return tuple(Branch(end, tree.turns(tree.path(end))) for end in ends)

    def go_to(self, place: int | None) -> None:
        """Go over to the answer ``place`` of any branch, and to before the first question where it is None."""
        self._require_idle()
        nodes = self._tree.nodes
        if place is not None and not (0 <= place < len(nodes) and nodes[place].message.role == "assistant"):
            raise InvalidInputError(f"there is no answer {place!r}", "See branches()")
        self._go_to(place)

    def branch(self, index: int | None = None) -> Self:
        """A chat of its own, without alternatives, that goes on after the answer at turn ``index``, or the last."""
        self._require_idle()
        path = self._tree.path(self._tree.leaf)
        if index is not None:
            path = path[: _index(index, len(path), "turn", _COUNT) + 1]
            if len(path) % 2:
                raise InvalidInputError(f"turn {len(path) - 1} is a question", "Branch after an answer, or use edit()")
        other = self.of(self.zephyr, replace(self.record, tree=self._tree.branch(path)))
        other.sampling, other.on_drop = self.sampling, self.on_drop
        return other

    def to_json(self) -> str:
        """The chat with all its branches as JSON; not the model, its sampling and :attr:`drops`.

        An answer that is being given is not yet in it, nor is its question.
        """
        return dump_chat(self.record)

    @property
    def record(self) -> ChatRecord:
        """What is kept of the chat; its tree is the chat's own."""
        return ChatRecord(self.system, self.policy, self.reserve_tokens, self._tree)

    @classmethod
    def from_json(cls, zephyr: _ModelT, text: str | bytes) -> Self:
        """The chat that :meth:`to_json` wrote; raises InvalidInputError for anything else."""
        return cls.of(zephyr, parse_chat(text))

    def _configured(self) -> None:
        if self.journal is not None:
            self.journal.configure(self.system, self.policy, self.reserve_tokens)

    def _go_to(self, leaf: int | None) -> None:
        self._tree.leaf = leaf
        if self.journal is not None:
            self.journal.select(leaf)

    @classmethod
    def of(cls, zephyr: _ModelT, record: ChatRecord) -> Self:
        """A chat with the turns and settings of ``record``, whose tree becomes its own."""
        chat = cls(zephyr, system=record.system, policy=record.policy, reserve_tokens=record.reserve_tokens)
        chat._tree = record.tree
        return chat

    def _now(self) -> tuple[list[int], tuple[Message, ...]]:
        """The nodes of the turns so far, and the turns, with the question that is being answered."""
        asked = self._asked
        path = self._tree.path(self._tree.leaf) if asked is None else asked[0]
        return path, (*self._tree.turns(path), *(() if asked is None else asked[1:]))

    def _alternatives(self, index: int) -> tuple[list[int], int | None]:
        path = self._tree.path(self._tree.leaf)
        if index == len(path):
            return self._tree.children(self._tree.leaf), None
        node = path[_index(index, len(path), "turn", _COUNT)]
        return self._tree.children(self._tree.nodes[node].parent), node

    def _require_idle(self) -> None:
        if self._answering.locked():
            raise _busy()

    def _ask(self, text: str) -> Answering:
        question = Message("user", _text(text, "the question"))
        return Answering(self, lambda: _Place(self._tree.leaf, question, None))

    def _ask_again(self) -> Answering:
        def place() -> _Place:
            path = self._tree.path(self._tree.leaf)
            if not path:
                raise InvalidInputError("the chat has no question to answer again", "Ask something first")
            node = self._tree.nodes[path[-2]]
            return _Place(node.parent, node.message, path[-2])

        return Answering(self, place)

    def _go_on(self) -> Answering:
        def place() -> _Place:
            path = self._tree.path(self._tree.leaf)
            if not path:
                raise InvalidInputError("the chat has no answer to go on with", "Ask something first")
            question, answer = (self._tree.nodes[node] for node in path[-2:])
            return _Place(question.parent, question.message, path[-2], answer.message.content)

        return Answering(self, place)

    def _ask_edited(self, index: int, text: str) -> Answering:
        question = Message("user", _text(text, "the question"))

        def place() -> _Place:
            path = self._tree.path(self._tree.leaf)
            at = _index(index, len(path), "turn", _COUNT)
            node = self._tree.nodes[path[at]]
            if node.message.role != "user":
                raise InvalidInputError(f"turn {at} is an answer", "Edit a question; regenerate() gives another answer")
            return _Place(node.parent, question, None)

        return Answering(self, place)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in the tree an answer goes."""

    after: int | None
    """The answer before the question."""
    question: Message
    node: int | None
    """The question's node, where it has one already."""
    answer_start: str = ""
    """What the answer begins with: that of another one, which goes on."""


class Answering(ReplyParts):
    """One answer: a context that the chat is busy in, and that keeps what came when it ends, however it ends.

    Where nothing came the chat is what it was before, so that the question can be asked again.
    """

    def __init__(self, chat: ChatState[_ModelT], place: Callable[[], _Place]) -> None:
        super().__init__()
        self._chat = chat
        self._place_now = place  # only when the answer begins: until then the chat may go on

    def __enter__(self) -> Self:
        chat = self._chat
        if not chat._answering.acquire(blocking=False):
            raise _busy()
        try:
            self._place = self._place_now()
            self._path = chat._tree.path(self._place.after)
            chat._asked = self._path, self._place.question
            self._journal = chat.journal  # to the end the same one
            if self._journal is not None:
                new = self._place.node is None
                parent = self._place.after if new else self._place.node
                self._journal.begin(parent, self._place.question if new else None, self.answer_start)
        except BaseException:
            chat._asked = None
            chat._answering.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        chat, place = self._chat, self._place
        try:
            if self.text:
                answer = Message("assistant", self.answer_start + self.text)
                if place.node is not None:
                    chat._tree.leaf = chat._tree.add(place.node, answer)
                else:
                    chat._tree.leaf = chat._tree.add(place.after, place.question, answer)
            if self._journal is not None:
                self._journal.end(bool(self.text), self._finish)
        finally:
            chat._asked = None
            chat._answering.release()

    @property
    def answer_start(self) -> str:
        """What the answer begins with already, before :attr:`text`."""
        return self._place.answer_start

    def add(self, piece: Piece) -> None:
        if self._journal is not None and piece.text:
            self._journal.add(piece.text)
        super().add(piece)

    def messages(self, sampling: Sampling) -> Steps[tuple[Message, ...]]:
        """What to send, after dropping what the policy drops; see :mod:`zephyr_local.chat_fit` for the steps."""
        chat, tree = self._chat, self._chat._tree
        start, summary = tree.cut(self._path)
        asked = Asked(chat.system, tree.turns(self._path), self._place.question, start, summary, self.answer_start)
        n_ctx = chat.zephyr.n_ctx
        if chat.reserve_tokens is not None:
            reserve = chat.reserve_tokens
        elif sampling.max_tokens is not None:
            reserve = min(sampling.max_tokens, n_ctx // 2)
        else:
            reserve = min(256, n_ctx // 4)
        fitting, dropped = yield from fit(asked, Room(n_ctx, reserve, chat.policy))
        if dropped is not None:
            tree.cuts[self._path[fitting.start - 1]] = fitting.summary
            if self._journal is not None:
                self._journal.drop(self._path[fitting.start - 1], fitting.summary)
            chat._drops.append(dropped)
            if chat.on_drop is not None:
                chat.on_drop(dropped)
        return fitting.messages

    def sampling(self, sampling: Sampling | None) -> Sampling:
        """What was asked for, else the chat's, else the model's."""
        if sampling is None:
            sampling = self._chat.sampling
        if sampling is None:
            return self._chat.zephyr.default_sampling
        require_kind(sampling, Sampling, "sampling")
        return sampling


def _busy() -> InvalidInputError:
    return InvalidInputError(
        "an answer is still being given in this chat", "Read it to its end or close it first, or branch the chat before"
    )


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise InvalidInputError(f"{what} is of type {type(value).__name__}", "Give a string")
    return value


def _index(index: int, length: int, what: str, remedy: str) -> int:
    """``index`` counted from the beginning; negative ones count from the end."""
    if not isinstance(index, int) or not -length <= index < length:
        raise InvalidInputError(f"there is no {what} {index!r}, only {length}", remedy)
    return index % length
