"""Batched sampling against transformers' own generation, one prompt at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from zephyr_local.chat_types import Message
from zephyr_local.errors import CheckpointError
from zephyr_local.train.tiny.sampling import SampleSettings, TinyCheckpoint, sample, sample_ids, text_prompt
from zephyr_local.train.tiny.tokenizer import BOS_ID, EOS_ID

QUESTIONS = ("Hi", "What is the capital of Spain?", "2+2", "Hello there!", "What do cows eat?", "opposite of hot", "No")


def prompts(small: TinyCheckpoint) -> list[list[int]]:
    return [small.vocabulary.encode_prompt([Message("user", text)]) for text in QUESTIONS * 3]


def test_the_likeliest_tokens_are_transformers(small):
    for prompt, said in zip(
        prompts(small), sample_ids(small, prompts(small), SampleSettings(max_tokens=20)), strict=True
    ):
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            output = small.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, eos_token_id=EOS_ID,
                pad_token_id=EOS_ID,
            )  # fmt: skip
        expected = output[0, len(prompt) :].tolist()
        assert said == (expected[: expected.index(EOS_ID)] if EOS_ID in expected else expected)


def test_what_is_drawn_hangs_on_the_seed_and_the_place_alone(small):
    settings = SampleSettings(temperature=1.0, max_tokens=12, seed=3)
    asked = prompts(small)
    together = sample_ids(small, asked, settings)
    assert together == sample_ids(small, asked, settings)
    assert together == sample_ids(small, asked, SampleSettings(1.0, 12, 3, most_together=2))
    assert together[:4] == sample_ids(small, asked[:4], settings)
    assert together != sample_ids(small, asked, SampleSettings(1.0, 12, 4))
    assert together[0] != together[len(QUESTIONS)]  # the same question, another draw


def test_draws_follow_the_models_probabilities(small):
    prompt = text_prompt(small.vocabulary, "The")
    with torch.inference_mode():
        expected = small.model(torch.tensor([prompt])).logits[0, -1].double().div(0.7).softmax(-1)
    said = sample_ids(small, [prompt] * 4000, SampleSettings(0.7, 1, 0))
    drawn = torch.tensor([ids[0] if ids else EOS_ID for ids in said])
    seen = torch.bincount(drawn, minlength=len(expected)) / len(drawn)
    for token in expected.topk(3).indices:
        assert abs(seen[token] - expected[token]) < 0.04
    assert 0.5 * (seen - expected).abs().sum() < 0.2


def test_progress_and_order(small):
    told: list[tuple[int, int]] = []
    asked = prompts(small)
    texts = sample(small, asked, SampleSettings(max_tokens=4), lambda done, of: told.append((done, of)))
    assert len(texts) == len(asked)
    assert texts[: len(QUESTIONS)] == texts[len(QUESTIONS) : 2 * len(QUESTIONS)]
    assert told[-1] == (len(asked), len(asked))
    assert sample(small, []) == []


def test_a_prompt_that_fills_the_context_gets_no_answer(small):
    full = [BOS_ID] * small.model.config.max_position_embeddings
    assert sample_ids(small, [full, full[:-2]], SampleSettings(max_tokens=5))[0] == []
    assert len(sample_ids(small, [full, full[:-2]], SampleSettings(max_tokens=5))[1]) <= 2


def test_a_folder_without_a_checkpoint(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        TinyCheckpoint.load(tmp_path)
