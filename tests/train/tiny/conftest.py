"""A checkpoint of some thousand parameters with zephyr-tiny's vocabulary, untrained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import MistralForCausalLM

from zephyr_local.train.tiny.sampling import TinyCheckpoint
from zephyr_local.train.tiny.shape import TinyShape, VocabularySample, new_tokenizer

SMALL = TinyShape(vocab_size=768, hidden_size=64, intermediate_size=64, n_layers=2, n_heads=2, n_kv_heads=1)
FEW = VocabularySample(n_dialogues=300, n_paragraphs=300)


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "small"
    new_tokenizer(folder, SMALL, FEW)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = MistralForCausalLM(SMALL.config())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4)  # random weights as they come say nearly the same whatever is asked
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small(small_folder: Path) -> TinyCheckpoint:
    return TinyCheckpoint.load(small_folder)
