"""The settings of the preference step, and how a recipe's YAML becomes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Self, get_args

from zephyr_local.errors import InvalidInputError
from zephyr_local.train.data.binarise import PairRule, Rejected, Ties
from zephyr_local.train.data.preference_formats import AUTO, check_format
from zephyr_local.train.data.setting_checks import require_known, require_number, require_one_of, require_whole
from zephyr_local.train.data.ultrafeedback import Score

_MOST_HELD_OUT: Final = 0.5


@dataclass(frozen=True, slots=True)
class PreferenceSettings(PairRule):
    """How preferences are read, made into pairs, filtered and split; :class:`PairRule` holds the rest.

    Raises InvalidInputError where a value is none that is allowed.
    """

    format: str = AUTO
    """A name of ``preference_formats.FORMAT_NAMES``, or by the keys of each record."""
    score: Score = "mean"
    """Which of UltraFeedback's scores."""
    drop_sources: tuple[str, ...] = ()
    """Sources to leave out: UltraFeedback's ``truthful_qa`` is a benchmark."""
    drop_duplicates: bool = True
    """A pair with the same prompt and answers as an earlier one is dropped."""
    max_length: int | None = None
    """The most tokens of prompt and answer together; a pair beyond is dropped, never cut."""
    max_prompt_length: int | None = None
    """The most tokens of a prompt."""
    held_out: float = 0.0
    """Without test inputs: this share of the prompts is the test split, the same prompts whatever the seed."""

    def __post_init__(self) -> None:
        check_format(self.format)
        for name, kind in (("score", Score), ("rejected", Rejected), ("ties", Ties)):
            require_one_of(name, getattr(self, name), get_args(kind))
        require_number("min_margin", self.min_margin, 0)
        require_number("held_out", self.held_out, 0, _MOST_HELD_OUT)
        if self.max_length_ratio is not None:
            require_number("max_length_ratio", self.max_length_ratio, 1)
        require_whole("seed", self.seed)
        for name in ("max_length", "max_prompt_length"):
            if getattr(self, name) is not None:
                require_whole(name, getattr(self, name), 1)
        if type(self.drop_duplicates) is not bool:
            raise InvalidInputError(f"drop_duplicates is {self.drop_duplicates!r}", "Use true or false")
        if not isinstance(self.drop_sources, tuple) or not all(isinstance(name, str) for name in self.drop_sources):
            raise InvalidInputError(f"drop_sources is {self.drop_sources!r}", "Give a list of names")

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """The settings of a recipe's ``prepare``. Raises InvalidInputError, naming the key."""
        require_known(values, cls, "preference")
        given = dict(values)
        if isinstance(given.get("drop_sources"), list):
            given["drop_sources"] = tuple(given["drop_sources"])
        return cls(**given)

    def as_json(self) -> dict[str, object]:
        """JSON values; :meth:`parse` reads them."""
        return {**asdict(self), "drop_sources": list(self.drop_sources)}

    @property
    def needs_tokens(self) -> bool:
        """Whether a tokenizer must be at hand."""
        return self.max_length is not None or self.max_prompt_length is not None
