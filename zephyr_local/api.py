"""What an application holds: a model that answers chats, in pieces or whole."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from zephyr_local.chat import Chat
from zephyr_local.chat_fit import Policy
from zephyr_local.chat_types import OnPrefill, Reply, ReplyParts
from zephyr_local.engine import protocol
from zephyr_local.model_handle import MessageLike, ModelHandle, require_text
from zephyr_local.piece_stream import PieceStream
from zephyr_local.settings import EngineSettings, Sampling


class Zephyr(ModelHandle):
    """A model, loaded; a context manager. Any thread may use it, and answers run side by side.

    The engine runs in a process of its own: whatever native code does, this process lives. Where the engine crashes,
    the calls that wait raise EngineCrashed and the next one starts it again.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        settings: EngineSettings | None = None,
        *,
        template: str | os.PathLike[str] | None = None,
        on_progress: Callable[[float], object] | None = None,
        isolated: bool = True,
    ) -> None:
        """Load the GGUF at ``path``; without one, the tiny model that is shipped with the package.

        A text that is no file's path is the name of a model on this machine, wherever it lies: ``zephyr-7b-beta``,
        ``zephyr-7b-beta:q4_k_m``, ``hf:OWNER/REPO``, an alias. The network is never asked.

        ``template`` is ``zephyr`` or the path of a Jinja file, where the model brings none. ``on_progress`` takes the
        share of the load that is done, 0 to 1, on this thread; an exception of its ends the load and comes out of
        here, and so does Ctrl+C. ``isolated=False`` runs the engine on threads of this process, where a crash of
        native code ends it. Raises ModelNotFoundError, ModelFileError, TemplateError and EngineError.
        """
        super().__init__(path, settings, template=template, isolated=isolated)
        self._loaded = self._client.load(on_progress)

    def stream(
        self,
        messages: Iterable[MessageLike],
        sampling: Sampling | None = None,
        *,
        answer_start: str = "",
        on_prefill: OnPrefill | None = None,
    ) -> PieceStream:
        """The answer to a chat, piece by piece; the last piece has ``finish``.

        ``answer_start`` is what the answer begins with already; it is not among the pieces.
        ``on_prefill`` takes how many tokens of the chat are computed, and of how many, while the first piece is waited
        for. The iterator's ``cancel`` ends the answer from any thread; closing or dropping it does so too, and an
        exception (Ctrl+C, ``on_prefill``'s) while it waits. Raises InvalidInputError for the messages at once;
        EngineError, EngineCrashed, TemplateError and ContextExceededError from the iterator.
        """
        return PieceStream(self, self._generate(messages, sampling, answer_start), on_prefill)

    def complete(self, messages: Iterable[MessageLike], sampling: Sampling | None = None) -> Reply:
        """The whole answer to a chat."""
        parts = ReplyParts()
        with contextlib.closing(self.stream(messages, sampling)) as pieces:
            for piece in pieces:
                parts.add(piece)
        return parts.reply()

    def chat(self, *, system: str | None = None, sampling: Sampling | None = None, policy: Policy = "stop") -> Chat:
        """A new chat, which keeps its turns; ``policy`` says what happens when the context is full."""
        return Chat(self, system=system, sampling=sampling, policy=policy)

    def count_tokens(self, messages: Iterable[MessageLike]) -> int:
        """Tokens of a chat as the model sees it, the beginning of the answer included."""
        parsed = self._parsed(messages)
        return int(self._client.call(lambda request_id: protocol.CountTokens(request_id, parsed)).numbers[0])

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a text by itself: no start token, and no control token whatever it says."""
        text = require_text(text)
        return [int(n) for n in self._client.call(lambda request_id: protocol.Tokenize(request_id, text)).numbers]

    def embed(self, text: str) -> list[float]:
        """The mean of the last layer's outputs over a text's tokens, scaled to length 1.

        A chat model's: similar texts are near each other, less reliably than with a model trained for that.
        """
        text = require_text(text)
        return list(self._client.call(lambda request_id: protocol.Embed(request_id, text)).numbers)

    def devices(self) -> tuple[str, ...]:
        """What the engine's llama.cpp can compute on, the CPU among them."""
        return self._client.call(protocol.Devices).texts

    def close(self) -> None:
        """Cancel what runs and free the model. Closing twice is fine."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
