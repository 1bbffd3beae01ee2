"""The chat of a terminal: the turns, the model that answers, the store, and what goes with the next message."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyr_local.chat import Chat
from zephyr_local.chat_file import ChatRecord
from zephyr_local.chat_fit import Dropped, Policy, system_message
from zephyr_local.chat_tree import ChatTree
from zephyr_local.chat_types import Finish, Message, Piece
from zephyr_local.errors import ContextExceededError, InvalidInputError, ZephyrError
from zephyr_local.repl.attachment import Attachment, read_attachment
from zephyr_local.repl.kept_journal import KeptJournal
from zephyr_local.repl.late_model import LateModel, LoadFailed
from zephyr_local.repl.screen import visible
from zephyr_local.settings import Sampling
from zephyr_local.transcripts.store import ChatStore, TurnState
from zephyr_local.transcripts.stored_chat import ChatOrigin, StoredChat, title_of

if TYPE_CHECKING:
    from zephyr_local.api import Zephyr

BaseSampling = Callable[[bool], Sampling]
"""Takes whether the model is the bundled one; gives how it is sampled where the chat does not say."""


@dataclasses.dataclass(slots=True)
class Totals:
    """What this run's answers came to."""

    answers: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Conversation:
    """One chat at a time, which commands exchange for others. ``tell`` takes lines for the person."""

    def __init__(
        self,
        model: LateModel,
        store: ChatStore,
        base_sampling: BaseSampling,
        *,
        system: str | None = None,
        policy: Policy = "stop",
        tell: Callable[[str], object] = lambda line: None,
    ) -> None:
        """Begin a new chat; it is in the store from its first question on."""
        self.model, self.store, self.tell = model, store, tell
        self.base_sampling = base_sampling
        self.changes: dict[str, Any] = {}
        """Fields of ``Sampling`` that were set in the chat."""
        self._overridden: frozenset[str] = frozenset()
        self.attachments: list[Attachment] = []
        self.totals = Totals()
        self.last_finish: Finish | None = None
        self.used: int | None = None
        """Tokens of the context that the chat takes up; None: not known before the model is loaded."""
        self.has_loaded = False
        self._told_model: LateModel | None = None  # whose notices were told
        self._counting = threading.Lock()  # the thread that loads counts, too
        record = ChatRecord(system, policy, reserve_of(policy), ChatTree())
        self._hold(StoredChat.new(store, record, self._origin()), record)

    # --- which chat ---

    def new(self) -> None:
        """Begin another chat with the same system prompt and settings; the one before stays in the store."""
        record = dataclasses.replace(self.chat.record, tree=ChatTree())
        attachments = self.attachments
        self._exchange(StoredChat.new(self.store, record, self._origin()), record)
        self.attachments = attachments

    def resume(self, chat: int) -> None:
        """Go over to a chat of the store; the model stays. Raises InvalidInputError."""
        if chat == self.stored.id:
            return
        self._exchange(*StoredChat.resume(self.store, chat))

    def take_over(self, stored: StoredChat, record: ChatRecord) -> None:
        """Go over to a chat of the store that was opened already."""
        self._exchange(stored, record)

    def take(self, record: ChatRecord) -> None:
        """Go over to a copy of a chat that came from elsewhere, such as a file."""
        self._exchange(StoredChat.new(self.store, record, self._origin()), record)

    def branch(self, index: int | None) -> None:
        """Go over to a copy of the chat up to the answer at turn ``index``; this one stays in the store."""
        record = self.chat.branch(index).record
        title = f"{self.stored.title} (branch)" if self.stored.title else ""
        turns = self.store.turns(self.stored.id) if self.stored.id is not None else []
        self._exchange(StoredChat.new(self.store, record, self._origin(), title, turns), record)

    def last_state(self) -> TurnState | None:
        """How the last answer of the current branch ended, as far as the store knows."""
        if self.stored.id is None or self.journal.is_behind:
            return None
        turns = self.store.turns(self.stored.id)
        return turns[-1].state if turns else None

    def close(self) -> None:
        self.journal.close()
        self.model.close()

    def _exchange(self, stored: StoredChat, record: ChatRecord) -> None:
        self.journal.close()
        self._hold(stored, record)
        self.count()

    def _hold(self, stored: StoredChat, record: ChatRecord) -> None:
        self.stored = stored
        self.chat = Chat.of(self.model, record)
        self.journal = KeptJournal(stored, lambda: self.chat.record, self.tell)
        self.chat.journal = self.journal
        self.chat.on_drop = self._tell_drop
        self.changes = dict(stored.origin.sampling)
        self.attachments = []
        self._undone: list[int | None] = []
        self._sample()
        self._name_model()

    # --- the model ---

    def wait(self, on_wait: Callable[[float], object] | None = None) -> Zephyr:
        """The loaded model, its notices told. Raises what its load did, and LoadFailed where none was loaded before."""
        try:
            zephyr = self.model.wait(on_wait)
        except Exception as error:
            if not self.has_loaded and error is self.model.error:
                raise LoadFailed(error) from error
            raise
        if self.model is not self._told_model:
            self.has_loaded, self._told_model = True, self.model
            for notice in zephyr.notices:
                self.tell(notice)
        return zephyr

    def use_model(self, path: Path | None, on_change: Callable[[], object], template: str | None = None) -> None:
        """Free the model and begin to load another one; ``wait`` tells how that went."""
        self.model.close()
        self.model = LateModel(path, self.model.settings, template, on_change=on_change)
        self.model.start()
        self.chat.zephyr = self.model
        self._sample()
        self._remember_origin()

    # --- answers ---

    def ask(self, text: str, on_prefill: Callable[[int, int], object] | None = None) -> Generator[Piece, None, None]:
        """The answer to a message, before which the attached files stand."""
        question = "\n\n".join([*(attachment.text for attachment in self.attachments), text])
        if self.attachments and self.stored.id is None and not self.stored.title:
            names = ", ".join(attachment.name for attachment in self.attachments)
            self.stored.title = title_of(f"{text} [{names}]")  # and not how the first file begins
        return self._answer(self.chat.stream(question, on_prefill=on_prefill))

    def regenerate(self, on_prefill: Callable[[int, int], object] | None = None) -> Generator[Piece, None, None]:
        return self._answer(self.chat.regenerate(on_prefill=on_prefill))

    def edit(
        self, index: int, text: str, on_prefill: Callable[[int, int], object] | None = None
    ) -> Generator[Piece, None, None]:
        return self._answer(self.chat.edit(index, text, on_prefill=on_prefill))

    def go_on(self, on_prefill: Callable[[int, int], object] | None = None) -> Generator[Piece, None, None]:
        return self._answer(self.chat.continue_answer(on_prefill=on_prefill))

    def _answer(self, pieces: Generator[Piece, None, None]) -> Generator[Piece, None, None]:
        self._name_model()
        before = self.chat.place
        finish = None
        try:
            for piece in pieces:
                finish = piece.finish
                yield piece
        finally:
            pieces.close()
            if self.chat.place != before:
                self.attachments = []
                self._undone = []
            self._ended(finish)

    def _ended(self, finish: Finish | None) -> None:
        self.last_finish = finish
        if finish is not None and finish.prompt_tokens:
            self.totals.answers += 1
            self.totals.tokens += finish.completion_tokens
            self.totals.seconds += finish.completion_s
        self.count()

    # --- what it says and is told ---

    def undo(self) -> Message:
        """Go back to before the last question, which is returned."""
        place = self.chat.place
        question, _ = self.chat.undo()
        self._undone.append(place)
        self.count()
        return question

    def redo(self) -> None:
        """Take back the last undo. Raises InvalidInputError where there is none."""
        if not self._undone:
            raise InvalidInputError("nothing was undone", "/branches shows what else was said")
        self.chat.go_to(self._undone.pop())
        self.count()

    def go_to(self, place: int) -> None:
        self.chat.go_to(place)
        self._undone = []
        self.count()

    def set_system(self, system: str | None) -> None:
        self.chat.system = system
        self.count()

    def set_policy(self, policy: Policy) -> None:
        self.chat.policy = policy
        self.chat.reserve_tokens = reserve_of(policy)

    def set_sampling(self, name: str, value: Any) -> None:  # noqa: ANN401 — a field's, which Sampling checks
        """Set a field of ``Sampling`` for this chat. Raises InvalidInputError."""
        changed = dataclasses.replace(self.sampling, **{name: value})
        self.changes[name] = getattr(changed, name)  # as the store can keep it
        self._overridden -= {name}
        self._sample()
        self._remember_origin()

    def reset_sampling(self, name: str) -> None:
        """Let a field be what it was when the program began."""
        self.changes.pop(name, None)
        self._sample()
        self._remember_origin()

    def override(self, names: frozenset[str]) -> None:
        """Let fields of ``Sampling`` be what this run gave, whatever the chat has, which keeps it for the next run."""
        self._overridden = names
        self._sample()

    def remember_model(self) -> None:
        """Let the chat be gone on with by the model that it has now."""
        self._remember_origin()

    def attach(self, path: Path) -> int:
        """Let a file go with the next message; returns its tokens. Raises InvalidInputError, ContextExceededError."""
        zephyr = self.wait()
        attachment = read_attachment(path, zephyr.n_ctx)
        text = "\n\n".join(item.text for item in [*self.attachments, attachment])
        kept = self.chat.sent if self.chat.policy == "stop" else system_message(self.chat.system, None)
        free = zephyr.n_ctx - (self.chat.reserve_tokens or 1)
        try:
            needed = zephyr.count_tokens((*kept, Message("user", text)))
            tokens = len(zephyr.tokenize(attachment.text))
        except ContextExceededError:
            needed, tokens = zephyr.n_ctx + 1, None
        if needed > free:
            size = f"{tokens} tokens" if tokens is not None else "more tokens than the context holds"
            taken = f"{free - (zephyr.count_tokens(kept) if kept else 0)} of {zephyr.n_ctx}"
            raise ContextExceededError(f"{path.name} has {size}, and {taken} are free", "Give a part of it, or /clear")
        assert tokens is not None
        self.attachments.append(attachment)
        return tokens

    def count(self) -> None:
        """Count what the chat takes up, where the model is loaded; from any thread."""
        with self._counting:
            zephyr, sent = self.model.loaded, self.chat.sent
            if zephyr is not None and zephyr.engine_process_id is None:
                self.used = None  # it crashed: to count is no reason to load the model again
                return
            try:
                self.used = None if zephyr is None else zephyr.count_tokens(sent) if sent else 0
            except ContextExceededError:
                self.used = zephyr.n_ctx if zephyr is not None else None
            except ZephyrError:  # which the next answer will tell, too
                self.used = None

    @property
    def sampling(self) -> Sampling:
        """How answers are sampled now."""
        assert self.chat.sampling is not None
        return self.chat.sampling

    def _sample(self) -> None:
        base = self.base_sampling(self.model.path is None)
        changes = {name: value for name, value in self.changes.items() if name not in self._overridden}
        self.chat.sampling = dataclasses.replace(base, **changes)

    def _origin(self) -> ChatOrigin:
        path = self.model.path
        return ChatOrigin(
            None if path is None else str(path.absolute()), self.model.template, tuple(self.changes.items())
        )

    def _remember_origin(self) -> None:
        self.journal.hold_with(self._origin())

    def _name_model(self) -> None:
        self.stored.model_name = visible(self.model.label)  # a file may be called anything

    def _tell_drop(self, dropped: Dropped) -> None:
        turns = len(dropped.messages)
        before = "too many tokens" if dropped.tokens_before is None else f"{dropped.tokens_before} tokens"
        line = f"[{turns} turns are no longer shown to the model: {before} became {dropped.tokens_after}"
        if dropped.summary is not None:
            line += "; a summary stands in their place"
        if dropped.problem is not None:
            line += f"; they were not summarised, because {dropped.problem}"
        self.tell(line + "]")


def reserve_of(policy: Policy) -> int | None:
    """Tokens kept free for an answer: one that stops may use the context to its last token."""
    return 1 if policy == "stop" else None


def timing_line(finish: Finish) -> str:
    """One line of counts and rates, such as ``--verbose`` shows after an answer."""
    new_tokens = finish.prompt_tokens - finish.cached_tokens
    prefill = f"{new_tokens / finish.prompt_s:.0f}/s" if finish.prompt_s > 0 else "-"
    steps = finish.completion_tokens - 1  # the first token is sampled from the prefill's logits
    decode = f"{steps / finish.completion_s:.1f}/s" if finish.completion_s > 0 and steps > 0 else "-"
    return (
        f"[prompt {finish.prompt_tokens} tokens, {finish.cached_tokens} cached, first token after "
        f"{finish.prompt_s:.2f} s ({prefill}); answer {finish.completion_tokens} tokens, {decode}; {finish.reason}]"
    )
