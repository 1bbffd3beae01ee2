"""zephyr-tiny's vocabulary and training, with a model of some thousand parameters."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import sentencepiece
import torch
from transformers import AutoTokenizer, MistralForCausalLM

from zephyr_local.chat_types import Message
from zephyr_local.train.tiny.dialogues import dialogues
from zephyr_local.train.tiny.tokenizer import BOS_ID, EOS_ID, ROLE_PIECES, ChatVocabulary
from zephyr_local.train.tiny_model import TinySettings, TrainingReport, batches, make_checkpoint

SMALL = TinySettings(
    vocab_size=768,
    hidden_size=64,
    intermediate_size=64,
    n_layers=1,
    n_heads=2,
    n_kv_heads=1,
    vocabulary_dialogues=500,
    steps=6,
    n_threads=1,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainingReport, list[str]]:
    said: list[str] = []
    folder = tmp_path_factory.mktemp("tiny")
    report = make_checkpoint(folder, SMALL, said.append)
    return folder, report, said


@pytest.fixture(scope="module")
def vocabulary(trained: tuple[Path, TrainingReport, list[str]]) -> ChatVocabulary:
    return ChatVocabulary((trained[0] / "tokenizer.model").read_bytes())


def rendered(messages: tuple[Message, ...]) -> str:
    return "".join(f"<|{message.role}|>\n{message.content}</s>\n" for message in messages)


def test_a_checkpoint_is_what_transformers_loads(trained):
    folder, report, said = trained
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.model", "tokenizer.json", "chat_template.jinja"} <= names
    model = MistralForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert sum(parameter.numel() for parameter in model.parameters()) == report.n_parameters
    config = json.loads((folder / "config.json").read_text())
    assert config["sliding_window"] is None
    assert (config["vocab_size"], config["max_position_embeddings"]) == (SMALL.vocab_size, SMALL.n_ctx)
    assert said[-1].startswith("step 6/6")
    assert report.n_said_tokens < report.n_tokens
    assert 0 < report.final_loss < 10


def test_special_ids_bytes_and_role_marks_are_where_they_belong(trained, vocabulary):
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(trained[0] / "tokenizer.model"))
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


def test_ids_are_hugging_faces(trained, vocabulary):
    tokenizer = AutoTokenizer.from_pretrained(trained[0])
    for dialogue in itertools.islice(dialogues(9), 300):
        chat = [{"role": message.role, "content": message.content} for message in dialogue.messages]
        text = tokenizer.apply_chat_template(chat, tokenize=False)
        assert text == rendered(dialogue.messages)
        ids, _ = vocabulary.encode_dialogue(dialogue.messages)
        assert tokenizer(text)["input_ids"] == ids + vocabulary.encode_text("\n")
        for message in dialogue.messages:
            if message.content:
                assert tokenizer(message.content)["input_ids"] == [BOS_ID, *vocabulary.encode_text(message.content)]


def test_what_the_engine_feeds_begins_what_was_trained(vocabulary):
    """At every answer of a chat: the ids up to it are the same whether the answer is there yet or not."""
    for dialogue in itertools.islice(dialogues(11), 300):
        ids, said = vocabulary.encode_dialogue(dialogue.messages)
        for index, message in enumerate(dialogue.messages):
            if message.role != "assistant":
                continue
            prompt = vocabulary.encode_prompt(dialogue.messages[:index])
            assert ids[: len(prompt)] == prompt
            assert not said[len(prompt) - 1]
            end = ids.index(EOS_ID, len(prompt))
            assert all(said[len(prompt) : end + 1])
            assert vocabulary.decode(ids[len(prompt) : end]) == message.content


def test_batches_are_bounded_and_repeatable(vocabulary):
    first, again = (list(itertools.islice(batches(vocabulary, SMALL), 20)) for _ in range(2))
    for batch, same in zip(first, again, strict=True):
        assert torch.equal(batch.ids, same.ids)
        assert torch.equal(batch.targets, same.targets)
        assert batch.ids.numel() <= SMALL.batch_tokens
        said = batch.targets >= 0
        assert said.any(dim=1).all()
        assert torch.equal(batch.targets[:, :-1][said[:, :-1]], batch.ids[:, 1:][said[:, :-1]])
