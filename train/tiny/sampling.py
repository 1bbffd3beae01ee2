"""Many answers at once from a transformers checkpoint on the CPU: what the answerers and the exam sample with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zephyr_local.errors import CheckpointError
from zephyr_local.train.tiny.tokenizer import BOS_ID, EOS_ID, ChatVocabulary

if TYPE_CHECKING:
    import torch
    from transformers import MistralForCausalLM

Progress = Callable[[int, int], object]
"""Takes how many prompts are done, and of how many."""


@dataclass(frozen=True, slots=True)
class SampleSettings:
    """How answers are drawn."""

    temperature: float = 0.0
    """0: the likeliest token each time."""
    max_tokens: int = 60
    seed: int = 0
    most_together: int = 256
    """Prompts of one batch."""


@dataclass(frozen=True, slots=True)
class TinyCheckpoint:
    """A checkpoint folder in memory: the model in float32, and its vocabulary."""

    model: MistralForCausalLM
    vocabulary: ChatVocabulary

    @classmethod
    def load(cls, folder: Path) -> TinyCheckpoint:
        """Raises CheckpointError for a folder that holds no checkpoint of zephyr-tiny."""
        import torch
        from transformers import MistralForCausalLM

        for name in ("config.json", "tokenizer.model"):
            if not (folder / name).is_file():
                raise CheckpointError(f"there is no {name} in {folder}", "Give the folder of a finished stage")
        model = MistralForCausalLM.from_pretrained(folder, dtype=torch.float32)
        model.eval()  # type: ignore[no-untyped-call]
        return cls(model, ChatVocabulary((folder / "tokenizer.model").read_bytes()))


def sample(
    checkpoint: TinyCheckpoint,
    prompts: Sequence[Sequence[int]],
    settings: SampleSettings = SampleSettings(),
    progress: Progress | None = None,
) -> list[str]:
    """The text that answers each prompt (token ids), up to the end token, in the order of the prompts."""
    return [checkpoint.vocabulary.decode(ids) for ids in sample_ids(checkpoint, prompts, settings, progress)]


def sample_ids(
    checkpoint: TinyCheckpoint,
    prompts: Sequence[Sequence[int]],
    settings: SampleSettings = SampleSettings(),
    progress: Progress | None = None,
) -> list[list[int]]:
    """The ids that follow each prompt, without the end token, in the order of the prompts.

    Prompts of equal length go together, so nothing is padded or masked; who has ended leaves the batch. Each prompt has
    random numbers of its own, so what is drawn for it hangs neither on the other prompts nor on the batch size (but
    for the last bits of a float).
    """
    import torch

    draws = torch.rand(
        (len(prompts), settings.max_tokens), generator=torch.Generator().manual_seed(settings.seed), dtype=torch.float64
    )
    said: list[list[int]] = [[] for _ in prompts]
    n_done = 0
    for group in _of_equal_length(prompts, settings.most_together):
        ids = torch.tensor([list(prompts[i]) for i in group])  # (n_prompts, n_positions)
        with torch.inference_mode():
            answers = _answers(checkpoint.model, ids, draws[group], settings.temperature)
        for index, answer in zip(group, answers, strict=True):
            said[index] = answer
        n_done += len(group)
        if progress is not None:
            progress(n_done, len(prompts))
    return said


def _of_equal_length(prompts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    by_length: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(index)
    return [group[at : at + most] for _, group in sorted(by_length.items()) for at in range(0, len(group), most)]


def _answers(model: MistralForCausalLM, ids: torch.Tensor, draws: torch.Tensor, temperature: float) -> list[list[int]]:
    import torch
    from transformers import DynamicCache

    answers: list[list[int]] = [[] for _ in range(len(ids))]
    active = torch.arange(len(ids))
    cache = DynamicCache(config=model.config)
    room = model.config.max_position_embeddings - ids.shape[1]
    for step in range(min(draws.shape[1], room)):
        output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        tokens = _drawn(output.logits[:, -1], draws[active, step], temperature)  # (n_active,)
        going = tokens != EOS_ID
        for index, token in zip(active[going].tolist(), tokens[going].tolist(), strict=True):
            answers[index].append(token)
        if not going.any():
            break
        ids = tokens[going, None]
        if not going.all():
            active = active[going]
            cache.batch_select_indices(torch.nonzero(going)[:, 0])
    return answers


def _drawn(logits: torch.Tensor, draws: torch.Tensor, temperature: float) -> torch.Tensor:
    """The token at which the running sum of the probabilities passes the drawn number."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    sums = (logits.double() / temperature).softmax(dim=-1).cumsum(dim=-1)  # (n_active, vocab)
    return (sums < draws[:, None] * sums[:, -1:]).sum(dim=-1)


def text_prompt(vocabulary: ChatVocabulary, text: str) -> list[int]:
    """A document's beginning, which a base model goes on with."""
    return [BOS_ID, *vocabulary.encode_text(text)]
