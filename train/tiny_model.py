"""Train the bundled model on two CPU cores, from nothing: ``python -m zephyr_local.train.tiny_model --out DIR``.

Dialogues are generated, a vocabulary is trained on them, then a small Mistral model is trained on the assistant's words
alone. ``DIR/zephyr-tiny`` is a Hugging Face checkpoint, ``DIR/zephyr-tiny-Q4_K_M.gguf`` what the package ships, with
its card; ``DIR/results.md`` has the exam, samples and every mistake.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import MistralForCausalLM

from zephyr_local.convert.hf_to_gguf import ConvertOptions, convert_checkpoint
from zephyr_local.quantize.types import FileType
from zephyr_local.train.tiny.card import FRONT_MATTER, exam_table, mistakes_text, model_card, samples
from zephyr_local.train.tiny.dialogues import dialogues
from zephyr_local.train.tiny.exam import take_exam
from zephyr_local.train.tiny.shape import TinyShape
from zephyr_local.train.tiny.tokenizer import (
    EOS_ID,
    ChatVocabulary,
    chat_parts,
    train_vocabulary,
    write_tokenizer,
)

NOT_SAID = -100  # a target that the loss leaves out


@dataclass(frozen=True, slots=True)
class TinySettings:
    """Shape and training of zephyr-tiny. Row lengths are multiples of 256, so that every matrix takes a K-quant."""

    vocab_size: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 512
    n_layers: int = 4
    n_heads: int = 8
    n_kv_heads: int = 4
    n_ctx: int = 1024
    vocabulary_dialogues: int = 20_000
    steps: int = 1600
    batch_tokens: int = 2048
    """Tokens of a step, padding included."""
    learning_rate: float = 3e-3
    warmup_steps: int = 50
    weight_decay: float = 0.1
    seed: int = 17
    n_threads: int = 2


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What a run cost and where it ended."""

    n_parameters: int
    n_tokens: int
    """Padding included: what was computed."""
    n_said_tokens: int
    """The assistant's, which the loss is taken on."""
    n_dialogues: int
    final_loss: float
    """Mean of the last fifty steps."""
    elapsed_s: float


def new_model(settings: TinySettings, vocab_size: int) -> MistralForCausalLM:
    """A random Mistral model in float32."""
    shape = TinyShape(
        vocab_size=vocab_size,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        n_layers=settings.n_layers,
        n_heads=settings.n_heads,
        n_kv_heads=settings.n_kv_heads,
        n_ctx=settings.n_ctx,
    )
    return MistralForCausalLM(shape.config())


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's chats, padded on the right: causal attention never looks there."""

    ids: Tensor  # (n_chats, n_positions)
    targets: Tensor  # (n_chats, n_positions): the next id where the assistant says it, NOT_SAID elsewhere
    n_chats: int


def _padded(chats: list[tuple[list[int], list[bool]]]) -> Batch:
    width = max(len(ids) for ids, _ in chats) - 1
    ids = torch.full((len(chats), width), EOS_ID)
    targets = torch.full((len(chats), width), NOT_SAID)
    for row, (chat, said) in enumerate(chats):
        ids[row, : len(chat) - 1] = torch.tensor(chat[:-1])
        following = torch.tensor(chat[1:])
        targets[row, : len(chat) - 1] = torch.where(torch.tensor(said[1:]), following, NOT_SAID)
    return Batch(ids, targets, len(chats))


def batches(vocabulary: ChatVocabulary, settings: TinySettings) -> Iterator[Batch]:
    """Batches without end. Chats of like length go together, which leaves little padding."""
    rng = random.Random(settings.seed)
    chats = (vocabulary.encode_dialogue(dialogue.messages) for dialogue in dialogues(settings.seed))
    fitting = (chat for chat in chats if len(chat[0]) <= settings.n_ctx)
    while True:
        pool = sorted(itertools.islice(fitting, 1024), key=lambda chat: len(chat[0]))
        groups: list[list[tuple[list[int], list[bool]]]] = [[]]
        for chat in pool:
            if groups[-1] and len(chat[0]) * (len(groups[-1]) + 1) > settings.batch_tokens:
                groups.append([])
            groups[-1].append(chat)
        rng.shuffle(groups)
        yield from map(_padded, groups)


def answer_loss(model: MistralForCausalLM, batch: Batch) -> Tensor:
    """Mean cross-entropy of the assistant's tokens; logits are computed for these alone."""
    hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state  # (n_chats, n_positions, hidden)
    said = batch.targets != NOT_SAID
    logits = model.lm_head(hidden[said])  # (n_said, vocab)
    return torch.nn.functional.cross_entropy(logits, batch.targets[said])


def train(
    model: MistralForCausalLM, vocabulary: ChatVocabulary, settings: TinySettings, say: Callable[[str], None] = print
) -> TrainingReport:
    """AdamW with a short warm-up and a straight way down to zero."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    norms = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": norms, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / settings.warmup_steps, (settings.steps - step) / settings.steps),
    )
    model.train()
    started = time.perf_counter()
    recent: list[float] = []
    n_tokens = n_said = n_dialogues = 0
    for step, batch in enumerate(itertools.islice(batches(vocabulary, settings), settings.steps), start=1):
        loss = answer_loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        n_tokens += batch.ids.numel()
        n_said += int((batch.targets != NOT_SAID).sum())
        n_dialogues += batch.n_chats
        recent = [*recent[-49:], loss.item()]
        if step % 50 == 0 or step == settings.steps:
            elapsed_s = time.perf_counter() - started
            say(f"step {step}/{settings.steps}  loss {sum(recent) / len(recent):.3f}  {elapsed_s:.0f} s")
    return TrainingReport(
        n_parameters=sum(parameter.numel() for parameter in model.parameters()),
        n_tokens=n_tokens,
        n_said_tokens=n_said,
        n_dialogues=n_dialogues,
        final_loss=sum(recent) / len(recent),
        elapsed_s=time.perf_counter() - started,
    )


def make_checkpoint(folder: Path, settings: TinySettings, say: Callable[[str], None] = print) -> TrainingReport:
    """Everything up to a folder that transformers loads and ``zephyr-local quantize`` converts."""
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.n_threads)
    folder.mkdir(parents=True, exist_ok=True)
    # A seed of its own: the vocabulary need not see the chats that training starts with.
    sample = itertools.islice(dialogues(settings.seed + 1), settings.vocabulary_dialogues)
    texts = (part for dialogue in sample for part in chat_parts(dialogue.messages))
    vocabulary_model = train_vocabulary(texts, settings.vocab_size)
    write_tokenizer(folder, vocabulary_model, settings.n_ctx)
    vocabulary = ChatVocabulary(vocabulary_model)
    model = new_model(settings, len(vocabulary))
    report = train(model, vocabulary, settings, say)
    model.save_pretrained(folder)
    (folder / "README.md").write_text(FRONT_MATTER, encoding="utf-8")  # conversion takes name and licence from here
    return report


def made(report: TrainingReport) -> str:
    """How the card says that the model was made."""
    return (
        f"From random weights, on two CPU cores in {report.elapsed_s / 60:.0f} minutes, by\n"
        f"`python -m zephyr_local.train.tiny_model` in the project's repository: {report.n_dialogues:,} chats "
        f"({report.n_tokens:,} tokens)\nthat the script makes up itself from hand-written tables and wordings, no text "
        "copied from anywhere and no other model's\noutput; loss on the assistant's words alone (at the end "
        f"{report.final_loss:.3f}). Chats are in Zephyr's format. It has not been\naligned with preferences, and no "
        "safety training was done."
    )


def examine(out: Path, checkpoint: Path, report: TrainingReport) -> None:
    """Convert the checkpoint; have it and the GGUF sit the exam; write the card and the results."""
    target = out / "zephyr-tiny-Q4_K_M.gguf"
    convert_checkpoint(checkpoint, target, FileType.Q4_K_M, ConvertOptions(overwrite=True))
    quantized = take_exam(target)
    table = exam_table([("checkpoint, float32", take_exam(checkpoint)), ("GGUF, Q4_K_M", quantized)])
    card = model_card(report.n_parameters, target.stat().st_size, quantized, made(report))
    (out / "zephyr-tiny.md").write_text(card, encoding="utf-8")
    facts = "\n".join(f"- {key}: {value}" for key, value in asdict(report).items())
    wrong = mistakes_text(quantized.mistakes)
    results = f"{facts}\n\n{table}\n\n{samples(target)}\n\nMistakes of the GGUF:\n\n{wrong}\n"
    (out / "results.md").write_text(results, encoding="utf-8")
    print(results)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train zephyr-tiny, the model that comes with zephyr-local.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint, the GGUF and the results")
    parser.add_argument("--steps", type=int, default=TinySettings().steps, help="optimizer steps (default %(default)s)")
    arguments = parser.parse_args()
    out: Path = arguments.out
    checkpoint = out / "zephyr-tiny"
    report = make_checkpoint(checkpoint, TinySettings(steps=arguments.steps))
    (checkpoint / "training.json").write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    examine(out, checkpoint, report)


if __name__ == "__main__":
    main()
