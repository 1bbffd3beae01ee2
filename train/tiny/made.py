"""What recipes name: ``made:tiny-text``, ``made:tiny-dialogues``, ``made:tiny-feedback``, …, and ``new: tiny``."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyr_local.train.tiny.card import FRONT_MATTER
from zephyr_local.train.tiny.dialogues import dialogues
from zephyr_local.train.tiny.shape import TinyShape, new_tokenizer
from zephyr_local.train.tiny.text import paragraphs

if TYPE_CHECKING:
    from zephyr_local.train.prepare import Making

SOURCE = "zephyr-tiny"
NEW_MODEL_SEED = 17


def tiny_text(n: int, seed: int) -> Iterator[dict[str, Any]]:
    """Base text: ``{"text": paragraph}``."""
    for paragraph in itertools.islice(paragraphs(seed), n):
        yield {"text": paragraph}


def tiny_dialogues(n: int, seed: int) -> Iterator[dict[str, Any]]:
    """Dialogue records: ``{"messages", "id", "source"}``."""
    for number, dialogue in enumerate(itertools.islice(dialogues(seed), n)):
        messages = [{"role": message.role, "content": message.content} for message in dialogue.messages]
        yield {"messages": messages, "id": f"tiny-{seed}-{number}", "source": SOURCE}


def tiny_feedback(n: int, seed: int, dsft_folder: Path, base_folder: Path) -> Iterator[dict[str, Any]]:
    """Rated answers in UltraFeedback's format, sampled from the two stages' checkpoints."""
    from zephyr_local.train.tiny.feedback import feedback

    yield from feedback(n, seed, dsft_folder, base_folder)


def text_records(making: Making) -> Iterator[dict[str, Any]]:
    """``made:tiny-text?n=40000&seed=1``."""
    return tiny_text(making.n, making.seed)


def dialogue_records(making: Making) -> Iterator[dict[str, Any]]:
    """``made:tiny-dialogues?n=40000&seed=1``."""
    return tiny_dialogues(making.n, making.seed)


def feedback_records(making: Making) -> Iterator[dict[str, Any]]:
    """``made:tiny-feedback?n=1500&seed=1``: asks the models of the run's first two stages."""
    stages = (making.run.stage("dsft").folder, making.run.stage("pretrain").folder)
    return tiny_feedback(making.n, making.seed, *stages)


def on_policy_records(making: Making) -> Iterator[dict[str, Any]]:
    """``made:tiny-on-policy?n=1000&seed=2``: asks the model that the run begins with, and nobody else."""
    from zephyr_local.train.recipe import Recipe
    from zephyr_local.train.tiny.feedback import on_policy_feedback

    yield from on_policy_feedback(making.n, making.seed, Path(Recipe.read(making.run.recipe).base))


def new_model(folder: Path) -> None:
    """A random zephyr-tiny with its vocabulary, as a checkpoint: what the base stage trains."""
    import torch
    from transformers import MistralForCausalLM

    shape = TinyShape()
    new_tokenizer(folder, shape)
    with torch.random.fork_rng():
        torch.manual_seed(NEW_MODEL_SEED)
        model = MistralForCausalLM(shape.config())
    model.save_pretrained(folder)
    (folder / "README.md").write_text(FRONT_MATTER, encoding="utf-8")  # the stages' cards take the licence from here
