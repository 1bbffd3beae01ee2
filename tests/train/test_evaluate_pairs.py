"""Each pair is scored by itself, and exactly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.checkpoint_builder import ModelShape, build_checkpoint
from tests.train.recipe_builder import write_pairs
from zephyr_local.chat_types import Message
from zephyr_local.cli.main import run as command_line
from zephyr_local.errors import InvalidInputError
from zephyr_local.train.chat_ids import ChatIds
from zephyr_local.train.evaluate_pairs import EvaluationSettings, evaluate_pairs


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("pairs")
    shape = ModelShape(vocab_size=512, n_layers=1)
    policy = build_checkpoint(folder / "policy", shape, dtype="F32", seed=1)
    reference = build_checkpoint(folder / "reference", shape, dtype="F32", seed=2)
    for checkpoint in (policy, reference):  # its template is none that training takes
        (checkpoint / "chat_template.jinja").unlink()
    write_pairs(folder / "pairs.jsonl", 23)
    return policy, reference, folder / "pairs.jsonl"


def by_hand(folder: Path, pairs: Path) -> list[tuple[float, float]]:
    """Log probabilities of both answers, one sequence at a time and no padding."""
    chats, model = ChatIds(folder), AutoModelForCausalLM.from_pretrained(folder)
    found = []
    for line in pairs.read_text().splitlines():
        value = json.loads(line)
        prompt = [Message("user", value["prompt"][0]["content"])]
        ids = chats.pair_ids(prompt, value["chosen"][0]["content"], value["rejected"][0]["content"])
        sums = []
        for answer in (ids.chosen, ids.rejected):
            with torch.inference_mode():
                logits = model(torch.tensor([ids.prompt + answer])).logits[0]
            table = torch.log_softmax(logits, dim=-1)
            sums.append(sum(table[len(ids.prompt) - 1 + i, token].item() for i, token in enumerate(answer)))
        found.append((sums[0], sums[1]))
    return found


@pytest.mark.parametrize("batch_tokens", [1, 100, 100_000])
def test_rewards_are_those_of_a_sequence_alone(made: tuple[Path, Path, Path], batch_tokens: int):
    policy, reference, pairs = made
    result = evaluate_pairs(policy, reference, [pairs], EvaluationSettings(batch_tokens=batch_tokens, beta=0.5))
    ours, theirs = by_hand(policy, pairs), by_hand(reference, pairs)
    rewards = [(0.5 * (p[0] - r[0]), 0.5 * (p[1] - r[1])) for p, r in zip(ours, theirs, strict=True)]
    assert result.mean_reward_chosen == pytest.approx(sum(c for c, _ in rewards) / 23, abs=1e-4)
    assert result.mean_reward_rejected == pytest.approx(sum(r for _, r in rewards) / 23, abs=1e-4)
    assert result.every.right.n_right == sum(c > r for c, r in rewards)
    assert result.every.right.n == 23


def test_without_a_reference_the_answers_own_probabilities_count(made: tuple[Path, Path, Path]):
    policy, _, pairs = made
    result = evaluate_pairs(policy, None, [pairs])
    assert result.every.right.n_right == sum(c > r for c, r in by_hand(policy, pairs))


def test_the_command_line(made: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]):
    policy, reference, pairs = made
    flags = ["evaluate", "pairs", str(policy), str(pairs), "--reference", str(reference), "--limit", "5"]
    assert command_line([*flags, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value == evaluate_pairs(policy, reference, [pairs], EvaluationSettings(limit=5)).as_json()
    assert command_line(flags) == 0
    assert "longer" in capsys.readouterr().out


def test_files_without_pairs_are_named(made: tuple[Path, Path, Path], tmp_path: Path):
    policy, _, _ = made
    (tmp_path / "x.jsonl").write_text('{"messages": []}\n')
    with pytest.raises(InvalidInputError, match=r"x\.jsonl:1 is no pair"):
        evaluate_pairs(policy, None, [tmp_path / "x.jsonl"])
    (tmp_path / "y.jsonl").write_text("")
    with pytest.raises(InvalidInputError, match="no pairs to score"):
        evaluate_pairs(policy, None, [tmp_path / "y.jsonl"])
