"""The journal of a terminal chat: where the store fails, the chat goes on and catches up later."""

from __future__ import annotations

from collections.abc import Callable

from zephyr_local.chat_file import ChatRecord
from zephyr_local.chat_fit import Policy
from zephyr_local.chat_types import Finish, Message
from zephyr_local.errors import ChatStoreError, OutputError
from zephyr_local.transcripts.stored_chat import ChatOrigin, StoredChat


class KeptJournal:
    """Passes everything on to a stored chat; ``tell`` gets a line when that begins to fail, and when it works again."""

    def __init__(self, stored: StoredChat, record: Callable[[], ChatRecord], tell: Callable[[str], object]) -> None:
        self.stored, self._record, self._tell = stored, record, tell
        self.is_behind = False
        """Whether the store lacks something of the chat."""
        self._origin = stored.origin

    def begin(self, parent: int | None, question: Message | None, answer_start: str) -> None:
        self._try(lambda: self.stored.begin(parent, question, answer_start))

    def add(self, text: str) -> None:
        self._try(lambda: self.stored.add(text))

    def end(self, kept: bool, finish: Finish | None) -> None:
        self._try(lambda: self.stored.end(kept, finish))
        self.catch_up()

    def select(self, leaf: int | None) -> None:
        self._try(lambda: self.stored.select(leaf))

    def drop(self, after: int, summary: str | None) -> None:
        self._try(lambda: self.stored.drop(after, summary))

    def configure(self, system: str | None, policy: Policy, reserve_tokens: int | None) -> None:
        self._try(lambda: self.stored.configure(system, policy, reserve_tokens))

    def clear(self) -> None:
        self._try(self.stored.clear)

    def hold_with(self, origin: ChatOrigin) -> None:
        """The chat is held with another model or other settings from now on."""
        self._origin = origin
        self._try(self._write_origin)

    def close(self) -> None:
        """Let other processes have the chat, after a last try to write what is missing."""
        self.catch_up()
        if self.is_behind:
            self._tell("The chat could not be saved to its end.")
        self.stored.close()

    def catch_up(self) -> None:
        """Write all that is missing, where something is."""
        if self.is_behind:
            record = self._record()
            try:
                if record.tree.nodes:
                    self.stored.sync(record)
                elif self.stored.id is not None:  # of its first question, which nothing came of
                    self.stored.end(False, None)
                self._write_origin()
            except (ChatStoreError, OutputError):
                return  # told already
            self.is_behind = False
            self._tell("The chat is saved again, all of it.")

    def _write_origin(self) -> None:
        self.stored.origin = self._origin

    def _try(self, call: Callable[[], object]) -> None:
        if self.is_behind:  # what follows what is missing could not be understood
            return
        try:
            call()
        except (ChatStoreError, OutputError) as error:
            self.is_behind = True
            self._tell(f"The chat is not being saved: {error.problem}. It goes on, and is saved as soon as that works.")
