"""A trained stage to GGUF, its logits checked: ``python -m zephyr_local.train.export FOLDER TYPE TARGET ...``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from zephyr_local.api import Zephyr
from zephyr_local.chat_types import Message
from zephyr_local.convert.hf_to_gguf import ConvertOptions, OutputRequest, convert_model
from zephyr_local.errors import CheckpointError
from zephyr_local.quantize.types import FileType
from zephyr_local.settings import EngineSettings, Sampling
from zephyr_local.train.chat_ids import ChatIds
from zephyr_local.train.child import run_child
from zephyr_local.train.terminal import say_on_stderr

EXACT_LIMIT: Final = 1e-3
"""Largest difference of a log probability from the float32 GGUF's with a float32 cache; 1e-5 is usual."""
AGREEMENT_LIMIT: Final = 0.5
"""Least share of places where a quantized GGUF and the checkpoint have the same likeliest token. 2 bits reach 0.7."""
CHECKED_EXACTLY_BYTES: Final = 2 << 30
"""Of larger checkpoints no float32 GGUF is made to check by."""
_ANSWER_TOKENS: Final = 24
_PROMPTS: Final = (
    (Message("user", "What is the capital of France?"),),
    (Message("system", "You are a helpful assistant."), Message("user", "Write two sentences about the sea.")),
    (Message("user", "Hello!"), Message("assistant", "Hello! How can I help?"), Message("user", "Name three animals.")),
)


@dataclass(frozen=True, slots=True)
class LogitCheck:
    """How a GGUF's log probabilities compare with the checkpoint's, along the GGUF's own likeliest answers."""

    n_tokens: int
    largest_difference: float
    """Of a natural log probability, among the GGUF's likeliest tokens at each place."""
    mean_difference: float
    same_likeliest: int
    """Places where both have the same likeliest token."""

    def line(self, name: str) -> str:
        return (
            f"{name}: log probabilities differ by {self.mean_difference:.2g} on average and "
            f"{self.largest_difference:.2g} at most; the likeliest token is the same at {self.same_likeliest} of "
            f"{self.n_tokens} places"
        )


def export(folder: Path, requests: Sequence[tuple[str, Path]], say: Callable[[str], None]) -> None:
    """Convert a stage's folder to each type (``q4_k_m``, ...), and compare logits before and after.

    Raises CheckpointError where they disagree; then no target is there.
    """
    reference = Reference(folder)
    if reference.exact:
        with tempfile.TemporaryDirectory(prefix=".export.", dir=folder) as scratch:
            exact = Path(scratch) / "exact-F32.gguf"
            convert_model(folder, [OutputRequest(exact, FileType.parse("f32"))])
            check = reference.compare(exact)
        say(check.line("float32 GGUF against the checkpoint"))
        if check.largest_difference > EXACT_LIMIT:
            raise CheckpointError(
                f"the GGUF's log probabilities differ by {check.largest_difference:.2g}, more than {EXACT_LIMIT:g}",
                "Report it, with the recipe: conversion and training disagree about this model",
            )
    outputs = [OutputRequest(target, FileType.parse(kind)) for kind, target in requests]
    convert_model(folder, outputs, ConvertOptions(overwrite=True), on_notice=say)
    for _, target in requests:
        check = reference.compare(target)
        say(check.line(target.name))
        if check.same_likeliest < AGREEMENT_LIMIT * check.n_tokens:
            for _, written in requests:
                written.unlink(missing_ok=True)
            raise CheckpointError(
                f"{target.name} has the checkpoint's likeliest token at {check.same_likeliest} of {check.n_tokens} "
                "places",
                "Export to a type with more bits",
            )
        say(f"{target.name}: {target.stat().st_size / 1e6:.1f} MB; zephyr-local chat {target}")


class Reference:
    """A checkpoint in transformers, loaded once, with which GGUFs made of it are compared."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._chats = ChatIds.of_checkpoint(folder)
        self.exact = sum(path.stat().st_size for path in folder.glob("*.safetensors")) <= CHECKED_EXACTLY_BYTES
        """Small enough for float32, as a GGUF computes."""
        dtype = torch.float32 if self.exact else "auto"
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self._model: Any = model.eval()

    def compare(self, gguf: Path) -> LogitCheck:
        """The GGUF beside the checkpoint. Raises CheckpointError where the two see other token ids."""
        import torch

        differences: list[float] = []
        same = places = 0
        for prompt_ids, tokens, likeliest in _answers(gguf, self._chats):
            with torch.inference_mode():
                logits = self._model(torch.tensor([prompt_ids + tokens])).logits[0, len(prompt_ids) - 1 : -1]
            log_probabilities = torch.log_softmax(logits.float(), dim=-1)
            for place, among in enumerate(likeliest):
                row = log_probabilities[place]
                places += 1
                same += int(row.argmax()) == next(iter(among))
                differences += [abs(float(row[token]) - value) for token, value in among.items()]
        return LogitCheck(places, max(differences), sum(differences) / len(differences), same)


def _answers(gguf: Path, chats: ChatIds) -> list[tuple[list[int], list[int], list[dict[int, float]]]]:
    """For each prompt its ids, the likeliest answer, and at each place the likeliest tokens with log probabilities."""
    never_ends = {chats.vocabulary.eos_id: float("-inf")}
    sampling = Sampling(temperature=0, max_tokens=_ANSWER_TOKENS, logprobs=5, logit_bias=never_ends)
    found = []
    with Zephyr(gguf, EngineSettings(n_ctx=1024, kv_type="f32", n_parallel=1)) as zephyr:
        for messages in _PROMPTS:
            prompt_ids = chats.prompt_ids(messages)
            seen = zephyr.count_tokens(messages)
            if seen != len(prompt_ids):
                raise CheckpointError(
                    f"the GGUF makes {seen} tokens of a prompt and the checkpoint {len(prompt_ids)}",
                    "Report it, with the recipe: training and serving disagree about the template or vocabulary",
                )
            reply = zephyr.complete(messages, sampling)
            likeliest = [{top.token: top.logprob for top in entry.top} for entry in reply.logprobs]
            found.append((prompt_ids, [entry.token for entry in reply.logprobs], likeliest))
    return found


def main() -> int:
    """The process's entry point; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m zephyr_local.train.export")
    parser.add_argument("folder", type=Path)
    parser.add_argument("outputs", nargs="+", help="a type and a target, by turns")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    requests = list(zip(given.outputs[::2], map(Path, given.outputs[1::2]), strict=True))

    def work() -> None:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # type: ignore[no-untyped-call]
        export(given.folder, requests, say_on_stderr)

    return run_child(work, threads=given.threads)


if __name__ == "__main__":
    sys.exit(main())
