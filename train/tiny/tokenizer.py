"""zephyr-tiny's vocabulary: SentencePiece trained on the dialogues, and the same as Hugging Face's tokenizer."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from zephyr_local.chat_template import ZEPHYR_TEMPLATE
from zephyr_local.chat_types import Message
from zephyr_local.convert.vocabulary import read_pieces
from zephyr_local.train.hf_tokenizer import fast_tokenizer

UNK, BOS, EOS = "<unk>", "<s>", "</s>"
UNK_ID, BOS_ID, EOS_ID = 0, 1, 2
# Zephyr's role marks are plain text. As one piece each they shorten every turn by a third; the first of two is what BPE
# merges on its way to the second.
ROLE_PIECES = ("<|user", "<|user|>", "<|assistant", "<|assistant|>", "<|system", "<|system|>")


def train_vocabulary(texts: Iterable[str], vocab_size: int) -> bytes:
    """A SentencePiece BPE model with byte fallback, trained on ``texts`` and numbered as Mistral's is.

    The texts are cut at newlines first, so that no piece holds one: a newline is always the byte <0x0A>, and what
    stands before and after it is tokenised alike whether or not the other is there yet.
    """
    lines = (line for text in texts for line in text.split("\n") if line)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size - len(ROLE_PIECES),
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        # Off in training, so that a word at the start of a line becomes a piece; switched on below, as Mistral has it.
        add_dummy_prefix=False,
        character_coverage=1.0,
        required_chars="abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789",
        unk_id=UNK_ID,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    # protobuf fills its module in when it is imported, which no type checker sees
    model_proto: Any = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]
    proto = model_proto.FromString(model.getvalue())
    proto.normalizer_spec.add_dummy_prefix = True
    known = {piece.piece for piece in proto.pieces}
    lowest = min(piece.score for piece in proto.pieces)
    for rank, text in enumerate(ROLE_PIECES):
        if text not in known:
            proto.pieces.add(piece=text, score=lowest - 1 - rank, type=model_proto.SentencePiece.NORMAL)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    serialized: bytes = proto.SerializeToString()
    return serialized


def write_tokenizer(folder: Path, model: bytes, max_length: int) -> None:
    """tokenizer.json, tokenizer_config.json, chat_template.jinja, and tokenizer.model with its own scores."""
    (folder / "tokenizer.model").write_bytes(model)
    vocabulary = read_pieces(folder, sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size())
    tokenizer = fast_tokenizer(vocabulary, add_bos=True, template=ZEPHYR_TEMPLATE, max_length=max_length)
    tokenizer.save_pretrained(folder)


def chat_parts(messages: Sequence[Message], *, ask: bool = False) -> list[str]:
    """The rendered chat, cut at the end tokens; ``ask`` adds the beginning of the assistant's turn."""
    parts = [f"<|{message.role}|>\n{message.content}" for message in messages]
    if ask:
        parts.append("<|assistant|>\n")
    return [part if index == 0 else "\n" + part for index, part in enumerate(parts)]


class ChatVocabulary:
    """Chats to token ids, as the runtime does it: each part between control tokens is tokenised whole."""

    def __init__(self, model: bytes) -> None:
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)

    def __len__(self) -> int:
        return int(self._pieces.get_piece_size())

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text with SentencePiece's dummy prefix."""
        ids: list[int] = self._pieces.encode(text)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; control tokens are not text."""
        text: str = self._pieces.decode(list(ids))
        return text

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """What the engine feeds before the model answers."""
        ids = [BOS_ID]
        parts = chat_parts(messages, ask=True)
        for part in parts[:-1]:
            ids += [*self.encode_text(part), EOS_ID]
        return ids + self.encode_text(parts[-1])
