"""Chats into token ids, remembering what answers were made of."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from zephyr_local.chat_template import ChatTemplate, EncodedChat, encode_chat
from zephyr_local.chat_types import Message
from zephyr_local.engine.llama import LlamaModel

_REMEMBERED_ANSWERS: Final = 256


class PromptEncoder:
    """A model's template and vocabulary, and a memory of the last answers' tokens; thread-safe.

    The text of an answer need not tokenise to the tokens that were sampled. Where the next turn holds exactly the text
    of an answer, the tokens in the cache are used for it, and so the whole prefix is found there.
    """

    def __init__(self, template: ChatTemplate, model: LlamaModel) -> None:
        self._template, self._model = template, model
        self._memory: OrderedDict[str, tuple[int, ...]] = OrderedDict()
        self._lock = threading.Lock()
        self._control = frozenset(model.control_tokens.values())

    def encode(self, messages: Sequence[Message], answer_start: str = "") -> EncodedChat:
        """Raises TemplateError, and ContextExceededError for what cannot fit."""
        with self._lock:
            memory = dict(self._memory)
        return encode_chat(self._template, messages, self._model, memory, answer_start=answer_start)

    def remember(self, chat: EncodedChat, answer: Sequence[int], text: str) -> None:
        """Keep the tokens of a finished answer, text and tokens both whole."""
        if not answer or not self._control.isdisjoint(answer):
            return
        with self._lock:
            self._memory[chat.tail_text + text] = (*chat.tail_ids, *answer)
            self._memory.move_to_end(chat.tail_text + text)
            while len(self._memory) > _REMEMBERED_ANSWERS:
                self._memory.popitem(last=False)

    def close(self) -> None:
        """End the template's process, if it has one."""
        self._template.close()
