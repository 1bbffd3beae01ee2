"""Finds dialogues whose prompts are an examination's, so that a model is not examined on what it was trained on.

A user's turn has a prompt in it where, as words in normal form, it is the prompt; where it contains a prompt of eight
words or more; or where half of a long prompt's runs of thirteen words are in it. Runs of thirteen words are those of
Brown et al. 2020 (arXiv 2005.14165, appendix C), who let a single one decide; that also takes dialogues that share no
more than a phrase with a test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from zephyr_local.errors import InvalidInputError
from zephyr_local.train.data.normal_text import normal_words
from zephyr_local.train.data.records import read_records

PROMPT_KEYS: Final = ("turns", "prompt", "instruction", "question", "messages")


class Prompt(NamedTuple):
    """A prompt that must not be trained on, and where it stands."""

    where: str
    text: str


class Overlap(NamedTuple):
    """What a dialogue shares with an examination."""

    prompt: Prompt
    how: str
    """``the same``, ``contained`` or ``overlapping``."""


def read_prompts(path: Path) -> Iterator[Prompt]:
    """The prompts of one file: text, one a line; or records with `turns` (MT-Bench's), `prompt`, `instruction` (with
    `input`), `question` or `messages`, the first of these that a record has.

    Raises InvalidInputError for a file in which there is none.
    """
    found = False
    for prompt in _read_lines(path) if path.suffix == ".txt" else _read_values(path):
        if prompt.text.strip():
            found = True
            yield prompt
    if not found:
        raise InvalidInputError(
            f"there is no prompt in {path}", f"Give one a line in .txt, or records with {', '.join(PROMPT_KEYS)}"
        )


def _read_lines(path: Path) -> Iterator[Prompt]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}", "Check the path") from None
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} is not UTF-8 at byte {error.start}", "Save it as UTF-8") from None
    for number, line in enumerate(text.split("\n"), start=1):
        yield Prompt(f"{path.name}:{number}", line)


def _read_values(path: Path) -> Iterator[Prompt]:
    for where, value in read_records(path):
        yield from (Prompt(where, text) for text in _prompt_texts(value))


def _prompt_texts(value: Mapping[str, object]) -> list[str]:
    for key in PROMPT_KEYS:
        texts = list(_texts(value.get(key)))
        more = value.get("input")
        if key == "instruction" and texts and isinstance(more, str):
            texts = [f"{texts[0]}\n\n{more}"]
        if texts:
            return texts
    return []


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        for item in value:
            if isinstance(item, str):
                yield item
            elif isinstance(item, Mapping) and item.get("role", item.get("from")) in ("user", "human"):
                yield from _texts(item.get("content", item.get("value")))
            elif isinstance(item, Mapping) and item.get("type") == "text":
                yield from _texts(item.get("text"))


@dataclass(frozen=True, slots=True)
class OverlapLimits:
    """What counts as having a prompt in it; words are those of the normal form."""

    min_contained_words: int = 8
    """A shorter prompt counts only where it is the whole turn: few words are anybody's."""
    run_words: int = 13
    """Of a prompt with more, runs of so many words are looked for."""
    min_run_share: float = 0.5
    """Of these runs, how many must be in a turn; 0: one is enough."""


class PromptIndex:
    """Prompts to look for in dialogues."""

    def __init__(self, prompts: Iterable[Prompt], limits: OverlapLimits = OverlapLimits()) -> None:
        self._limits = limits
        self._whole: dict[tuple[str, ...], Prompt] = {}
        self._runs: dict[tuple[str, ...], list[int]] = {}
        """Each run of a prompt of run_words words, or a shorter prompt as a whole → prompts' numbers."""
        self._heads: dict[tuple[str, ...], list[int]] = {}
        """How the runs begin, which decides nearly always → how long they are."""
        self._long: list[Prompt] = []
        self._n_needed: list[int] = []
        for prompt in prompts:
            self._add(prompt)

    def __len__(self) -> int:
        return len(self._whole)

    def _add(self, prompt: Prompt) -> None:
        words = tuple(normal_words(prompt.text))
        if not words or words in self._whole:
            return
        self._whole[words] = prompt
        limits = self._limits
        if len(words) < limits.min_contained_words:
            return
        size = min(len(words), limits.run_words)
        runs = {words[start : start + size] for start in range(len(words) - size + 1)}
        number = len(self._long)
        self._long.append(prompt)
        self._n_needed.append(max(1, -int(-limits.min_run_share * len(runs) // 1)))
        for run in runs:
            self._runs.setdefault(run, []).append(number)
            sizes = self._heads.setdefault(run[: self._head_words], [])
            if size not in sizes:
                sizes.append(size)

    @property
    def _head_words(self) -> int:
        return min(self._limits.min_contained_words, self._limits.run_words)

    def find(self, texts: Iterable[str]) -> Overlap | None:
        """The first prompt that one of a user's turns has in it; None where none has."""
        for text in texts:
            words = tuple(normal_words(text))
            if (same := self._whole.get(words)) is not None:
                return Overlap(same, "the same")
            if (overlap := self._find_runs(words)) is not None:
                return overlap
        return None

    def _find_runs(self, words: tuple[str, ...]) -> Overlap | None:
        head_words = self._head_words
        found: set[tuple[str, ...]] = set()
        for start in range(len(words) - head_words + 1):
            for size in self._heads.get(words[start : start + head_words], ()):
                run = words[start : start + size]
                if run in self._runs:
                    found.add(run)
        if not found:
            return None
        counts = Counter(number for run in found for number in self._runs[run])
        for number in sorted(counts):
            if counts[number] >= self._n_needed[number]:
                prompt = self._long[number]
                whole = " ".join(normal_words(prompt.text))
                contained = f" {whole} " in f" {' '.join(words)} "
                return Overlap(prompt, "contained" if contained else "overlapping")
        return None
