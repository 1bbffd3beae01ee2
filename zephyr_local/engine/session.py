"""One model, its template and its chats: what will run in a process of its own.

Messages come in and pieces go out; token ids and rendered text stay here, where the vocabulary is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from zephyr_local.chat_template import ChatTemplate, encode_chat
from zephyr_local.chat_types import Message, Piece
from zephyr_local.engine.cancel import CancelFlag
from zephyr_local.engine.generation import stream_text
from zephyr_local.engine.llama import LlamaModel
from zephyr_local.gguf_check import check_runnable
from zephyr_local.gguf_file import GGUFFile, read_gguf
from zephyr_local.settings import EngineSettings, Sampling


class Session:
    """A loaded model that answers chats, one at a time."""

    def __init__(self, model: LlamaModel, template: ChatTemplate, name: str, notices: Sequence[str]) -> None:
        """Use :meth:`open`."""
        self._model, self._template = model, template
        self.model_name = name
        """``general.name``, or the file's name."""
        self.notices = tuple(notices)
        """Lines for the user about what was assumed."""
        self.n_ctx = model.n_ctx

    @classmethod
    def open(
        cls,
        path: Path,
        settings: EngineSettings,
        *,
        template: str | Path | None = None,
        progress: Callable[[float], object] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Session:
        """Check the file, choose the template (``zephyr`` or a file; None: the model's own), then load the model.

        Raises ModelNotFoundError, ModelFileError, TemplateError and EngineError.
        """
        gguf = read_gguf(path)
        check_runnable(gguf)
        chosen, notice = choose_template(gguf, template)
        model = LlamaModel.load(path, settings, progress=progress, cancelled=cancelled)
        notices = [notice] if notice else []
        if settings.n_ctx is not None and settings.n_ctx > model.n_ctx_train:
            notices.append(
                f"n_ctx is {settings.n_ctx}, past the {model.n_ctx_train} tokens that the model was trained for; "
                "answers get worse beyond them"
            )
        return cls(model, chosen, gguf.text("general.name") or path.stem, notices)

    def stream(
        self, messages: Sequence[Message], sampling: Sampling, cancel: CancelFlag | None = None
    ) -> Iterator[Piece]:
        """The answer to a chat; the last piece has ``finish``.

        Raises TemplateError, and ContextExceededError where the chat leaves no room for a single token.
        """
        return stream_text(self._model, self._encode(messages), sampling, cancel)

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the chat as the model would see it, the beginning of the answer included."""
        return len(self._encode(messages))

    def close(self) -> None:
        """Free the model. Closing twice is fine."""
        self._model.close()

    def _encode(self, messages: Sequence[Message]) -> list[int]:
        return encode_chat(self._template, messages, self._model)


def choose_template(gguf: GGUFFile, choice: str | Path | None) -> tuple[ChatTemplate, str | None]:
    """The template that the user chose, else the file's own, with a line for the user where it was assumed."""
    if choice is None:
        return ChatTemplate.from_gguf_metadata(gguf.metadata, gguf.path.name)
    if choice == "zephyr":
        return ChatTemplate.named("zephyr"), None
    return ChatTemplate.from_file(Path(choice)), None
