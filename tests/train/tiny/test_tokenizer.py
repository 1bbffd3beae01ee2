"""zephyr-tiny's vocabulary: its pieces, and the same ids as Hugging Face's tokenizer and as the engine."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoTokenizer

from tests.train.tiny.conftest import FEW, SMALL
from zephyr_local.chat_types import Message
from zephyr_local.train.chat_ids import ChatIds
from zephyr_local.train.tiny.dialogues import dialogues
from zephyr_local.train.tiny.shape import new_tokenizer
from zephyr_local.train.tiny.tokenizer import BOS_ID, EOS_ID, ROLE_PIECES, ChatVocabulary


@pytest.fixture(scope="module")
def vocabulary(small_folder: Path) -> ChatVocabulary:
    return ChatVocabulary((small_folder / "tokenizer.model").read_bytes())


def rendered(messages: tuple[Message, ...]) -> str:
    return "".join(f"<|{message.role}|>\n{message.content}</s>\n" for message in messages)


def test_the_same_bytes_each_time(small_folder, tmp_path):
    new_tokenizer(tmp_path, SMALL, FEW)
    for name in ("tokenizer.model", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / name).read_bytes() == (small_folder / name).read_bytes()


def test_special_ids_bytes_and_role_marks_are_where_they_belong(small_folder, vocabulary):
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(small_folder / "tokenizer.model"))
    assert [pieces.id_to_piece(i) for i in range(3)] == ["<unk>", "<s>", "</s>"]
    assert sum(pieces.is_byte(i) for i in range(len(vocabulary))) == 256
    assert len(vocabulary) == SMALL.vocab_size
    for text in ROLE_PIECES:
        assert pieces.id_to_piece(pieces.piece_to_id(text)) == text
        assert not pieces.is_control(pieces.piece_to_id(text))
    assert not any("\n" in pieces.id_to_piece(i) for i in range(len(vocabulary)))


@pytest.mark.parametrize(
    "text", ["What is 12 + 7?", "  two  spaces ", "a\n\nb", "Grüße, 東京 🙂", "\t", "<|user|>", "the USA"]
)
def test_any_text_comes_back(vocabulary, text):
    assert vocabulary.decode(vocabulary.encode_text(text)) == text


def test_ids_are_hugging_faces(small_folder, vocabulary):
    tokenizer, rule = AutoTokenizer.from_pretrained(small_folder), ChatIds(small_folder)
    for dialogue in itertools.islice(dialogues(9), 300):
        chat = [{"role": message.role, "content": message.content} for message in dialogue.messages]
        text = tokenizer.apply_chat_template(chat, tokenize=False)
        assert text == rendered(dialogue.messages)
        ids = rule.dialogue_ids(dialogue.messages).ids
        assert tokenizer(text)["input_ids"] == ids
        for message in dialogue.messages:
            if message.content:
                assert tokenizer(message.content)["input_ids"] == [BOS_ID, *vocabulary.encode_text(message.content)]


def test_what_is_sampled_from_begins_what_was_trained(small_folder, vocabulary):
    """At every answer of a chat: the ids up to it are the same whether the answer is there yet or not."""
    rule = ChatIds(small_folder)
    for dialogue in itertools.islice(dialogues(11), 300):
        trained = rule.dialogue_ids(dialogue.messages)
        ids, said = trained.ids, trained.said
        for index, message in enumerate(dialogue.messages):
            if message.role != "assistant":
                continue
            prompt = vocabulary.encode_prompt(dialogue.messages[:index])
            assert ids[: len(prompt)] == prompt
            assert not said[len(prompt) - 1]
            end = ids.index(EOS_ID, len(prompt))
            assert all(said[len(prompt) : end + 1])
            assert vocabulary.decode(ids[len(prompt) : end]) == message.content
