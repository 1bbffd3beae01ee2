"""Training sees the ids that the engine sees: one rule for template, start token and system turn."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from tests.checkpoint_builder import ModelShape, build_checkpoint, change_json, mistral_sentencepiece_model
from tests.engine.conftest import mistral_spm, mistral_vocabulary  # noqa: F401 — fixtures
from tests.texts import honest_texts, hostile_text
from zephyr_local.chat_template import ChatTemplate, encode_chat
from zephyr_local.chat_types import Message
from zephyr_local.engine.llama import LlamaModel
from zephyr_local.errors import InvalidInputError, TemplateError
from zephyr_local.train.chat_ids import NOT_LEARNED, ChatIds
from zephyr_local.train.hf_tokenizer import tokenizer_from_pieces


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = ModelShape(hidden_size=32, ffn_size=32, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=32000)
    return build_checkpoint(
        tmp_path_factory.mktemp("mistral"), shape, tokenizer=mistral_sentencepiece_model(), dtype="F32"
    )


@pytest.fixture(scope="module")
def chats(folder: Path) -> ChatIds:
    return ChatIds(folder)


def dialogues(texts: list[str], count: int, seed: int) -> list[list[Message]]:
    """Dialogues whose last turn is the assistant's, every other one with a system turn."""
    dice = random.Random(seed)
    found = []
    for index in range(count):
        turns = [Message("system", dice.choice(texts))] if index % 2 else []
        for _ in range(dice.choice((1, 1, 2, 3))):
            turns += [Message("user", dice.choice(texts)), Message("assistant", dice.choice(texts))]
        found.append(turns)
    return found


@pytest.mark.parametrize("hostile", [False, True], ids=["honest", "hostile"])
def test_the_collators_ids_are_the_engines(chats: ChatIds, mistral_vocabulary: LlamaModel, hostile: bool) -> None:  # noqa: F811
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    dice = random.Random(5)
    texts = [hostile_text(dice) for _ in range(200)] if hostile else honest_texts(300, seed=5)
    collator = DataCollatorForLanguageModeling(pad_token_id=2)
    template = ChatTemplate.named("zephyr")
    for turns in dialogues(texts, 300, seed=6):
        dialogue = chats.dialogue_ids(turns)
        batch = collator([{"input_ids": dialogue.ids, "labels": dialogue.labels(assistant_only=True)}])
        engine = encode_chat(template, turns, mistral_vocabulary, add_generation_prompt=False).ids
        assert batch["input_ids"][0].tolist() == engine
        prompt = encode_chat(template, turns[:-1], mistral_vocabulary).ids
        assert chats.prompt_ids(turns[:-1]) == prompt == engine[: len(prompt)]
        assert engine.count(chats.vocabulary.bos_id) == 1
        assert engine.count(chats.vocabulary.eos_id) == len(turns)


@pytest.mark.parametrize("hostile", [False, True], ids=["honest", "hostile"])
def test_pairs_are_the_engines_prompt_and_what_it_would_say(
    chats: ChatIds,
    mistral_vocabulary: LlamaModel,  # noqa: F811
    hostile: bool,
) -> None:
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    dice = random.Random(7)
    texts = [hostile_text(dice) for _ in range(200)] if hostile else honest_texts(300, seed=7)
    collator = DataCollatorForPreference(pad_token_id=2)
    template = ChatTemplate.named("zephyr")
    for turns in dialogues(texts, 100, seed=8):
        *prompt, chosen = turns
        pair = chats.pair_ids(prompt, chosen.content, "No.")
        batch = collator([{"prompt_ids": pair.prompt, "chosen_ids": pair.chosen, "rejected_ids": pair.rejected}])
        engine = encode_chat(template, turns, mistral_vocabulary, add_generation_prompt=False).ids
        # The engine stops at the end token; the newline that the template writes after it is nobody's.
        last = len(engine) - 1 - engine[::-1].index(chats.vocabulary.eos_id)
        assert batch["input_ids"][0][batch["attention_mask"][0] == 1].tolist() == engine[: last + 1]
        assert pair.rejected[-1] == chats.vocabulary.eos_id
        assert pair.prompt == encode_chat(template, prompt, mistral_vocabulary).ids


def test_only_what_the_assistant_says_is_learnt(chats: ChatIds) -> None:
    turns = [Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello!")]
    turns += [Message("user", "Bye"), Message("assistant", "Goodbye!")]
    dialogue = chats.dialogue_ids(turns)
    labels = dialogue.labels(assistant_only=True)
    learnt = [token for token in labels if token != NOT_LEARNED]
    assert chats.vocabulary.decode(learnt) == "Hello!</s>Goodbye!</s>"
    assert dialogue.labels(assistant_only=False) == dialogue.ids
    assert len(labels) == len(dialogue.ids)


def test_the_empty_system_turn_is_in_training_and_in_the_template_that_is_served(folder: Path) -> None:
    chats = ChatIds(folder, system_turn="empty")
    turns = [Message("user", "Hi"), Message("assistant", "Hello!")]
    ids = chats.dialogue_ids(turns).ids
    assert chats.vocabulary.decode(ids) == "<s><|system|>\n</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello!</s>\n"
    assert chats.dialogue_ids([Message("system", ""), *turns]).ids == ids
    tokenizer = tokenizer_from_pieces(chats)
    served = tokenizer.apply_chat_template([{"role": m.role, "content": m.content} for m in turns], tokenize=False)
    assert served == chats.vocabulary.decode(ids)


def test_the_fast_tokenizer_renders_and_splits_alike(chats: ChatIds) -> None:
    tokenizer = tokenizer_from_pieces(chats)
    for turns in dialogues(honest_texts(100, seed=9), 60, seed=9):
        messages = [{"role": m.role, "content": m.content} for m in turns]
        ids = tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"]
        assert ids == chats.dialogue_ids(turns).ids


def test_a_vocabulary_from_tokenizer_json_alone(folder: Path, chats: ChatIds, tmp_path: Path) -> None:
    other = tmp_path / "json-only"
    shutil.copytree(folder, other)
    tokenizer_from_pieces(chats).backend_tokenizer.save(str(other / "tokenizer.json"))
    (other / "tokenizer.model").unlink()
    again = ChatIds(other)
    for text in honest_texts(200, seed=10):
        assert again.vocabulary.tokenize(text) == chats.vocabulary.tokenize(text)


def test_text_for_pre_training_stands_between_start_and_end(chats: ChatIds) -> None:
    assert chats.vocabulary.decode(chats.text_ids("A cow says moo. </s>")) == "<s>A cow says moo. </s></s>"
    assert chats.text_ids("x </s>").count(chats.vocabulary.eos_id) == 1


def test_no_start_token_where_the_vocabulary_wants_none(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "no-bos"
    shutil.copytree(folder, other)
    change_json(other / "tokenizer_config.json", add_bos_token=False)
    chats = ChatIds(other)
    assert chats.vocabulary.bos_id not in chats.prompt_ids([Message("user", "Hi")])
    assert "bos_token" not in chats.served_template


def test_a_template_whose_prompts_are_no_beginnings_is_refused(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text(
        "{% for m in messages %}{{ m['role'] + ':' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'BOT:' }}{% endif %}"
    )
    chats = ChatIds(folder, template=str(file))
    with pytest.raises(TemplateError, match="not the beginning"):
        chats.dialogue_ids([Message("user", "Hi"), Message("assistant", "Hello!")])


def test_unknown_rules_are_refused(folder: Path) -> None:
    with pytest.raises(InvalidInputError, match="system_turn is 'always'"):
        ChatIds(folder, system_turn="always")  # type: ignore[arg-type]
    with pytest.raises(TemplateError, match="cannot be read"):
        ChatIds(folder, template="nowhere.jinja")
