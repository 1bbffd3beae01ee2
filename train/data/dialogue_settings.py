"""The settings of the dialogue step, and how a recipe's YAML becomes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self, get_args

from zephyr_local.errors import InvalidInputError
from zephyr_local.train.data.dialogue_formats import AUTO, check_format
from zephyr_local.train.data.duplicates import Duplicates, DuplicatesBy
from zephyr_local.train.data.setting_checks import require_known, require_number, require_one_of, require_whole

_MOST_HELD_OUT: Final = 0.5


@dataclass(frozen=True, slots=True)
class DialogueSettings:
    """How dialogues are read, cleaned, filtered and split: as the paper does, and exact duplicates dropped.

    Raises InvalidInputError where a value is none that is allowed.
    """

    format: str = AUTO
    """A name of ``dialogue_formats.FORMAT_NAMES``, or by the keys of each record."""
    max_characters: int = 1_000_000
    """Of all turns; a longer dialogue is dropped."""
    truecase: bool = True
    """Mend turns whose case is wrong as a whole."""
    drop_feelings: bool = True
    """Drop dialogues in which the assistant disclaims feelings or opinions that nobody asked for."""
    drop_duplicates: Duplicates = "exact"
    """``none``; ``exact``: the same but for case and spacing; ``near``: also those that are nearly the same."""
    duplicates_by: DuplicatesBy = "dialogue"
    """Compare whole dialogues, or their first ``prompt`` alone."""
    near_threshold: float = 0.8
    """The Jaccard similarity of five-word shingles from which two texts are nearly the same."""
    against: tuple[Path, ...] = ()
    """Files of prompts that must not be trained on."""
    min_contained_words: int = 8
    """A shorter prompt of `against` counts only where it is a user's whole turn."""
    run_words: int = 13
    """Of longer prompts of `against`, runs of so many words are looked for."""
    min_run_share: float = 0.5
    """Of these runs, how many must be in a turn; 0: one is enough."""
    held_out: float = 0.01
    """Where a test file is asked for and has no inputs of its own: below 1 a share, from 1 a number of dialogues."""
    seed: int = 0
    """Of the split and of MinHash."""

    def __post_init__(self) -> None:
        check_format(self.format)
        for name in ("truecase", "drop_feelings"):
            if type(getattr(self, name)) is not bool:
                raise InvalidInputError(f"{name} is {getattr(self, name)!r}", "Use true or false")
        for name, kind in (("drop_duplicates", Duplicates), ("duplicates_by", DuplicatesBy)):
            require_one_of(name, getattr(self, name), get_args(kind))
        for name, least in (("max_characters", 1), ("min_contained_words", 1), ("run_words", 2), ("seed", 0)):
            require_whole(name, getattr(self, name), least)
        require_number("near_threshold", self.near_threshold, 0.3, 1)  # below, every text is a candidate
        require_number("min_run_share", self.min_run_share, 0, 1)
        _check_held_out(self.held_out)
        if not isinstance(self.against, tuple) or not all(isinstance(path, Path) for path in self.against):
            raise InvalidInputError(f"against is {self.against!r}", "Give a list of files")

    @classmethod
    def parse(cls, values: Mapping[str, Any], folder: Path = Path()) -> Self:
        """The settings of a recipe's ``prepare``; the files of `against` are relative to `folder`.

        Raises InvalidInputError, naming the key.
        """
        require_known(values, cls, "dialogue")
        given = dict(values)
        if given.get("drop_duplicates") is False:  # YAML 1.1 reads off and no so
            given["drop_duplicates"] = "none"
        if isinstance(files := given.get("against"), (str, list)):
            files = [files] if isinstance(files, str) else files
            if not all(isinstance(name, (str, Path)) for name in files):
                raise InvalidInputError(f"against is {files!r}", "Give a list of files")
            given["against"] = tuple(folder / name for name in files)
        return cls(**given)

    def as_json(self) -> dict[str, object]:
        """JSON values; :meth:`parse` reads them."""
        return {**asdict(self), "against": [str(path) for path in self.against]}


def _check_held_out(value: object) -> None:
    remedy = f"Give a share of at most {_MOST_HELD_OUT:g}, or a whole number of dialogues"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidInputError(f"held_out is {value!r}", remedy)
    if not 0 < value <= _MOST_HELD_OUT and not (1 <= value < 2**53 and value == int(value)):
        raise InvalidInputError(f"held_out is {value!r}", remedy)
