"""zephyr-tiny's vocabulary and training, with a model of some thousand parameters."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from transformers import MistralForCausalLM

from zephyr_local.train.tiny.tokenizer import ChatVocabulary
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


def test_batches_are_bounded_and_repeatable(vocabulary):
    first, again = (list(itertools.islice(batches(vocabulary, SMALL), 20)) for _ in range(2))
    for batch, same in zip(first, again, strict=True):
        assert torch.equal(batch.ids, same.ids)
        assert torch.equal(batch.targets, same.targets)
        assert batch.ids.numel() <= SMALL.batch_tokens
        said = batch.targets >= 0
        assert said.any(dim=1).all()
        assert torch.equal(batch.targets[:, :-1][said[:, :-1]], batch.ids[:, 1:][said[:, :-1]])
