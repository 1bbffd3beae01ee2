"""The one rule by which a chat becomes token ids in training: the engine's own, over the checkpoint's vocabulary.

:func:`zephyr_local.chat_template.encode_chat` is what the engine runs. Here it runs over the pieces of a checkpoint's
folder, so a model is trained on the ids that it will be served with: BOS once where the vocabulary asks for it, control
ids from the template alone, and a ``</s>`` inside a message as plain text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Self, get_args

from zephyr_local.chat_template import ZEPHYR_TEMPLATE, ChatTemplate, encode_chat
from zephyr_local.chat_types import ROLES, Message
from zephyr_local.convert.model_config import read_config, read_json
from zephyr_local.convert.vocabulary import TokenKind, Vocabulary, read_vocabulary
from zephyr_local.errors import InvalidInputError, TemplateError
from zephyr_local.train.recipe import SystemTurn

NOT_LEARNED: Final = -100
"""A label that the loss leaves out: torch's ``ignore_index``."""

# What whitespace Jinja leaves is what Zephyr's own lines leave: trim_blocks takes the newline after each tag.
_EMPTY_SYSTEM_TURN: Final = "{% if messages[0]['role'] != 'system' %}\n{{ '<|system|>\n' + eos_token }}\n{% endif %}\n"
_CACHED_TEXTS: Final = 4096


class PieceVocabulary:
    """What :func:`encode_chat` asks of a vocabulary, answered by SentencePiece over a checkpoint's pieces."""

    n_ctx = 0  # no limit: data steps filter by length

    def __init__(self, vocabulary: Vocabulary, *, add_bos: bool) -> None:
        if vocabulary.bos_id is None or vocabulary.eos_id is None:
            raise TemplateError("the vocabulary has no start or no end token", "Use the base model's tokenizer files")
        self.source = vocabulary
        self.bos_id, self.eos_id, self.add_bos = vocabulary.bos_id, vocabulary.eos_id, add_bos
        self._texts = vocabulary.tokens
        steering = (TokenKind.CONTROL, TokenKind.UNKNOWN)
        self.control_tokens = {
            text: i
            for i, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
            if kind in steering or i in (self.bos_id, self.eos_id)
        }
        self.byte_tokens = {
            int(text[3:5], 16): i
            for i, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
            if kind is TokenKind.BYTE
        }
        self._pieces = _sentencepiece(vocabulary)
        self._cached = lru_cache(_CACHED_TEXTS)(self._tokenize)

    def _tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(self._pieces.encode(text))

    def tokenize(self, text: str) -> list[int]:
        """Ids of plain text; no control token is parsed from it."""
        # A dialogue is encoded turn by turn, and each time the turns before come again.
        return list(self._cached(text))

    def least_tokens(self, text: str) -> int:
        return 0  # nobody asks where n_ctx is no limit

    def token_text(self, token: int) -> str:
        return self._texts[token]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, control tokens written out."""
        parts, run = [], list[int]()
        control = set(self.control_tokens.values())
        for token in [*ids, None]:
            if token is None or token in control:
                parts.append(self._pieces.decode(run))
                run = []
                if token is not None:
                    parts.append(self._texts[token])
            else:
                run.append(token)
        return "".join(parts)


def _sentencepiece(vocabulary: Vocabulary) -> Any:  # noqa: ANN401 — sentencepiece has no types
    """A processor with the vocabulary's pieces, which may come from tokenizer.json and tokens added later."""
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

    model_proto: Any = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]
    proto = model_proto()
    proto.trainer_spec.model_type = 2  # BPE
    proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.vocab_size = len(vocabulary.tokens)
    proto.trainer_spec.bos_id, proto.trainer_spec.eos_id = vocabulary.bos_id, vocabulary.eos_id
    proto.trainer_spec.unk_id = vocabulary.unk_id if vocabulary.unk_id is not None else 0
    proto.trainer_spec.unk_piece = vocabulary.tokens[proto.trainer_spec.unk_id]
    proto.trainer_spec.bos_piece = vocabulary.tokens[proto.trainer_spec.bos_id]
    proto.trainer_spec.eos_piece = vocabulary.tokens[proto.trainer_spec.eos_id]
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = vocabulary.add_space_prefix is not False
    proto.normalizer_spec.remove_extra_whitespaces = False
    proto.normalizer_spec.escape_whitespaces = True
    for text, score, kind in zip(vocabulary.tokens, vocabulary.scores, vocabulary.kinds, strict=True):
        proto.pieces.add(piece=text, score=score, type=int(kind))
    return SentencePieceProcessor(model_proto=proto.SerializeToString())


@dataclass(frozen=True, slots=True)
class DialogueIds:
    """A whole dialogue as the model sees it."""

    ids: list[int]
    said: list[bool]
    """For each id whether the assistant said it: its words and its end token."""

    def labels(self, *, assistant_only: bool) -> list[int]:
        """The ids that the loss is taken on, NOT_LEARNED elsewhere."""
        if not assistant_only:
            return self.ids
        return [token if said else NOT_LEARNED for token, said in zip(self.ids, self.said, strict=True)]


@dataclass(frozen=True, slots=True)
class PairIds:
    """A preference as ids; each answer ends with its end token, as the engine's answers do."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


class ChatIds:
    """Dialogues and preferences into ids, for one checkpoint, template and system-turn rule."""

    def __init__(self, folder: Path, template: str = "zephyr", system_turn: SystemTurn = "as_written") -> None:
        """`template` is ``zephyr`` or a Jinja file. Raises CheckpointError, TemplateError or InvalidInputError."""
        if system_turn not in get_args(SystemTurn):
            raise InvalidInputError(f"system_turn is {system_turn!r}", f"Use {' or '.join(get_args(SystemTurn))}")
        config = read_config(folder)
        self.system_turn: SystemTurn = system_turn
        self.template = ChatTemplate.named(template) if template == "zephyr" else ChatTemplate.from_file(Path(template))
        self.vocabulary = PieceVocabulary(read_vocabulary(folder, config), add_bos=_adds_bos(folder))

    @classmethod
    def of_checkpoint(cls, folder: Path) -> Self:
        """With the template that a finished checkpoint carries, or Zephyr's; its system-turn rule is in it."""
        template = folder / "chat_template.jinja"
        return cls(folder, str(template) if template.is_file() else "zephyr")

    def close(self) -> None:
        self.template.close()

    @property
    def served_template(self) -> str:
        """The template that the trained checkpoint carries: BOS written out, the system-turn rule within."""
        source = ZEPHYR_TEMPLATE if self.template.name == "zephyr" else self.template.source
        if self.system_turn == "empty":
            source = _EMPTY_SYSTEM_TURN + source
        return "{{ bos_token }}" + source if self.vocabulary.add_bos and "bos_token" not in source else source

    def _with_system_turn(self, messages: Sequence[Message]) -> list[Message]:
        if self.system_turn == "empty" and messages and messages[0].role != "system":
            return [Message("system", ""), *messages]
        return list(messages)

    def text_ids(self, text: str) -> list[int]:
        """Plain text for pre-training, between the start and the end token."""
        bos = [self.vocabulary.bos_id] if self.vocabulary.add_bos else []
        return [*bos, *self.vocabulary.tokenize(text), self.vocabulary.eos_id]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """What stands before an answer to the last turn: the engine's prompt."""
        return encode_chat(self.template, self._with_system_turn(messages), self.vocabulary).ids

    def dialogue_ids(self, messages: Sequence[Message]) -> DialogueIds:
        """The whole dialogue, and which of it the assistant said."""
        turns = self._with_system_turn(messages)
        ids = encode_chat(self.template, turns, self.vocabulary, add_generation_prompt=False).ids
        said = [False] * len(ids)
        for index, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            begin = self._answer_begin(turns[:index], ids)
            end = ids.index(self.vocabulary.eos_id, begin) + 1 if self.vocabulary.eos_id in ids[begin:] else len(ids)
            said[begin:end] = [True] * (end - begin)
        return DialogueIds(ids, said)

    def _answer_begin(self, before: Sequence[Message], ids: Sequence[int]) -> int:
        """Where the answer to `before` begins in ids; the prompt must be the beginning of the dialogue."""
        prompt = encode_chat(self.template, before, self.vocabulary).ids
        if list(ids[: len(prompt)]) != prompt:
            raise TemplateError(
                f"with the template {self.template.name} a prompt is not the beginning of its dialogue, so the model "
                "would be trained on other tokens than it is asked with",
                "Use a template that renders a turn alike whatever follows it, such as zephyr",
            )
        return len(prompt)

    def pair_ids(self, prompt: Sequence[Message], chosen: str, rejected: str) -> PairIds:
        """A preference between two answers to the last turn of `prompt`."""
        prompt_ids = self.prompt_ids(prompt)
        return PairIds(prompt_ids, self._answer_ids(prompt, chosen), self._answer_ids(prompt, rejected))

    def _answer_ids(self, prompt: Sequence[Message], answer: str) -> list[int]:
        turns = [*self._with_system_turn(prompt), Message("assistant", answer)]
        ids = encode_chat(self.template, turns, self.vocabulary, add_generation_prompt=False).ids
        ids = ids[self._answer_begin(turns[:-1], ids) :]
        if self.vocabulary.eos_id in ids:  # what the template writes after it, the model never says
            ids = ids[: ids.index(self.vocabulary.eos_id) + 1]
        return ids

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of a chat to its last end token; after a user's turn, the beginning of an answer is counted."""
        if not messages or messages[-1].role != "assistant":
            return len(self.prompt_ids(messages))
        turns = self._with_system_turn(messages)
        ids = encode_chat(self.template, turns, self.vocabulary, add_generation_prompt=False).ids
        return len(ids) - (ids[::-1].index(self.vocabulary.eos_id) if self.vocabulary.eos_id in ids else 0)


def messages_of(record: Sequence[Mapping[str, Any]]) -> list[Message]:
    """A record's messages, checked for what training relies on."""
    messages = [Message(entry["role"], entry["content"]) for entry in record]
    if any(message.role not in ROLES or not isinstance(message.content, str) for message in messages):
        raise InvalidInputError("a message has another role or content than text", "Prepare the data with `train data`")
    return messages


def _adds_bos(folder: Path) -> bool:
    """As llama.cpp has it for SentencePiece vocabularies: unless tokenizer_config.json says no."""
    path = folder / "tokenizer_config.json"
    return (read_json(path) if path.is_file() else {}).get("add_bos_token") is not False
