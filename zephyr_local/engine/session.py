"""Opening a model: the file is checked, its template chosen, and what the user should know is said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from zephyr_local.chat_template import ChatTemplate
from zephyr_local.chat_types import Message
from zephyr_local.engine.llama import LlamaModel
from zephyr_local.engine.machine import this_machine
from zephyr_local.engine.prompt import PromptEncoder
from zephyr_local.gguf_check import check_runnable
from zephyr_local.gguf_file import GGUFFile
from zephyr_local.gguf_split import read_model
from zephyr_local.memory.plan import plan
from zephyr_local.memory.shape import shape_of
from zephyr_local.settings import N_CTX_STEP, EngineSettings

# The converter's own key, which is only text to llama.cpp, and that of files in use, which llama.cpp 0c1e57098 does not
# read for this architecture (src/models/llama.cpp).
_WINDOW_KEYS: Final = ("zephyr_local.sliding_window", "llama.attention.sliding_window")


class Session:
    """A loaded model and its template."""

    def __init__(self, model: LlamaModel, template: ChatTemplate, name: str, notices: Sequence[str]) -> None:
        """Use :meth:`open`."""
        self.model, self.prompt = model, PromptEncoder(template, model)
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

        Of a model in several files ``path`` is the first; llama.cpp finds the others as ``gguf_split`` did. Raises
        ModelNotFoundError, ModelFileError, TemplateError, EngineError; NotEnoughMemoryError before weights are read.
        """
        gguf = read_model(path)
        check_runnable(gguf)
        chosen, notice = choose_template(gguf, template)
        if chosen.guard is not None:  # a program that nobody has seen run: what is wrong with it shows before the load
            chosen.render([Message("user", "Hello")])
        planned = plan(shape_of(gguf), settings, this_machine(), path.name)
        model = LlamaModel.load(path, planned.settings, progress=progress, cancelled=cancelled)
        notices = [*([notice] if notice else []), *planned.notices]
        if settings.n_ctx is not None and settings.n_ctx > model.n_ctx_train:
            notices.append(
                f"n_ctx is {settings.n_ctx}, past the {model.n_ctx_train} tokens that the model was trained for; "
                "answers get worse beyond them"
            )
        if (window_notice := sliding_window_notice(gguf, model.n_ctx)) is not None:
            notices.append(window_notice)
        return cls(model, chosen, gguf.text("general.name") or path.stem, notices)

    def text_ids(self, text: str) -> list[int]:
        """Tokens of a text by itself, with the start token where the vocabulary asks for one."""
        ids = self.model.tokenize(text)
        return [self.model.bos_id, *ids] if self.model.add_bos else ids

    def close(self) -> None:
        """Free the model. Closing twice is fine."""
        self.prompt.close()
        self.model.close()


def choose_template(gguf: GGUFFile, choice: str | Path | None) -> tuple[ChatTemplate, str | None]:
    """The template that the user chose, else the file's own, with a line for the user where it was assumed."""
    if choice is None:
        return ChatTemplate.from_gguf_metadata(gguf.metadata, gguf.path.name)
    if choice == "zephyr":
        return ChatTemplate.named("zephyr"), None
    return ChatTemplate.from_file(Path(choice)), None


def sliding_window_notice(gguf: GGUFFile, n_ctx: int) -> str | None:
    """A line for the user where the context is longer than the window that the model attended to in training.

    A window of 0, or one that is not a u32 (a key of ours is only text to llama.cpp, so it breaks no load), is none.
    """
    windows = [gguf.metadata[key] for key in _WINDOW_KEYS if gguf.value_types.get(key) == "u32"]
    window = min((value for value in windows if isinstance(value, int) and value > 0), default=n_ctx)
    if n_ctx <= window:
        return None
    within = window // N_CTX_STEP * N_CTX_STEP
    remedy = f"to stay within it, use --n-ctx {within} (n_ctx={within})" if within else "keep chats shorter than that"
    return (
        f"the model was trained with attention over the last {window} tokens, and the context is {n_ctx}; llama.cpp "
        f"computes full attention here, so past {window} tokens answers may get worse; {remedy}"
    )
