"""Does a model prefer the answers that were chosen? Each pair scored by itself, exactly.

TRL's ``rewards/accuracies`` is a mean of batch means, in which the pairs of a short last batch count for more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from zephyr_local.errors import InvalidInputError
from zephyr_local.train.chat_ids import ChatIds, messages_of
from zephyr_local.train.data.records import read_records
from zephyr_local.train.pair_accuracy import PairAccuracy, PairScore, pair_accuracy

DEFAULT_BATCH_TOKENS: Final = 8192


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """How pairs are scored."""

    beta: float = 0.1
    """DPO's: rewards are beta times the difference of log probabilities. It scales margins and changes no accuracy."""
    batch_tokens: int = DEFAULT_BATCH_TOKENS
    """Tokens computed at once, padding included."""
    limit: int | None = None
    """Score the first so many pairs."""
    device: str = "cpu"
    dtype: str = "float32"


def evaluate_pairs(
    model: Path,
    reference: Path | None,
    pairs: Sequence[Path],
    settings: EvaluationSettings | None = None,
    on_progress: Callable[[int, int], object] | None = None,
) -> PairAccuracy:
    """Reward accuracy of the checkpoint `model` over files of pairs; with a `reference`, the reward is DPO's.

    Without one, the answers' own log probabilities are compared, which favours the shorter answer. Raises
    InvalidInputError for files without pairs.
    """
    settings = settings or EvaluationSettings()
    if reference is not None and not (reference / "config.json").is_file():  # transformers would ask the hub for it
        raise InvalidInputError(f"the reference {reference} is no folder with a config.json", "Check the path")
    chats = ChatIds.of_checkpoint(model)
    rows = _rows(pairs, chats, settings.limit)
    if not rows:
        raise InvalidInputError("there are no pairs to score", "Give pairs as `zephyr-local data preferences` writes")
    answers = [side for row in rows for side in ((row[0], row[1]), (row[0], row[2]))]
    total = len(answers) * (1 if reference is None else 2)
    told = _Told(total, on_progress)
    policy = answer_log_probabilities(model, answers, settings, told)
    baseline = [0.0] * len(answers)
    if reference is not None:
        baseline = answer_log_probabilities(reference, answers, settings, told)
    scores = [
        PairScore(
            chosen=policy[2 * i],
            rejected=policy[2 * i + 1],
            reference_chosen=baseline[2 * i],
            reference_rejected=baseline[2 * i + 1],
            chosen_tokens=len(row[1]),
            rejected_tokens=len(row[2]),
        )
        for i, row in enumerate(rows)
    ]
    return pair_accuracy(scores, beta=settings.beta)


class _Told:
    def __init__(self, total: int, on_progress: Callable[[int, int], object] | None) -> None:
        self._done, self._total, self._on_progress = 0, total, on_progress

    def add(self, count: int) -> None:
        self._done += count
        if self._on_progress is not None:
            self._on_progress(self._done, self._total)


def _rows(files: Iterable[Path], chats: ChatIds, limit: int | None) -> list[tuple[list[int], list[int], list[int]]]:
    """Prompt, chosen and rejected ids."""
    rows: list[tuple[list[int], list[int], list[int]]] = []
    for file in files:
        for record in read_records(file):
            if limit is not None and len(rows) >= limit:
                return rows
            value: Any = record.value
            try:
                (chosen,), (rejected,) = messages_of(value["chosen"]), messages_of(value["rejected"])
                pair = chats.pair_ids(messages_of(value["prompt"]), chosen.content, rejected.content)
            except (KeyError, TypeError, ValueError):
                raise InvalidInputError(
                    f"{record.where} is no pair with prompt, chosen and rejected",
                    "Make them: zephyr-local data preferences",
                ) from None
            rows.append((pair.prompt, pair.chosen, pair.rejected))
    return rows


def answer_log_probabilities(
    folder: Path, answers: Sequence[tuple[list[int], list[int]]], settings: EvaluationSettings, told: _Told
) -> list[float]:
    """For each (prompt ids, answer ids) the natural log probability of the answer, summed over its tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise InvalidInputError(f"this torch finds no GPU for the device {settings.device}", "Give --device cpu")
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, settings.dtype), local_files_only=True
    )
    model.to(settings.device).eval()
    sums = [0.0] * len(answers)
    for batch in _batches(answers, settings.batch_tokens):
        width = max(len(answers[i][0]) + len(answers[i][1]) for i in batch)
        ids = torch.zeros((len(batch), width), dtype=torch.long)
        mask = torch.zeros((len(batch), width), dtype=torch.long)
        for row, i in enumerate(batch):
            whole = answers[i][0] + answers[i][1]
            ids[row, : len(whole)] = torch.tensor(whole)
            mask[row, : len(whole)] = 1
        with torch.inference_mode():
            hidden = model.model(ids.to(settings.device), attention_mask=mask.to(settings.device)).last_hidden_state
            for row, i in enumerate(batch):  # logits of one answer at a time: a vocabulary is wide
                prompt, answer = answers[i]
                places = hidden[row, len(prompt) - 1 : len(prompt) + len(answer) - 1]
                logits = model.lm_head(places).float()
                said = torch.tensor(answer, device=logits.device)
                sums[i] = float(torch.log_softmax(logits, dim=-1).gather(1, said[:, None]).double().sum())
        told.add(len(batch))
    return sums


def _batches(answers: Sequence[tuple[list[int], list[int]]], batch_tokens: int) -> Iterator[list[int]]:
    """Indices by length, so that little is padding; a single answer may be longer than a batch."""
    order = sorted(range(len(answers)), key=lambda i: len(answers[i][0]) + len(answers[i][1]))
    batch: list[int] = []
    for i in order:
        length = len(answers[i][0]) + len(answers[i][1])
        if batch and length * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
