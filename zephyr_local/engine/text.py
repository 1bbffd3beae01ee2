"""Bytes of tokens into text: incomplete characters and possible stop strings are held back here and nowhere else."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class Utf8Buffer:
    """Turns the bytes of tokens into text, holding back a character whose bytes have not all come."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> str:
        return self._decoder.decode(data)

    def finish(self) -> str:
        """What is left: U+FFFD for a character that never became whole."""
        return self._decoder.decode(b"", final=True)


class StopBuffer:
    """Lets text through until a stop string appears, holding back only what may be the beginning of one.

    Of several stop strings the one that is complete first counts, so that the outcome does not depend on how the text
    was cut into tokens.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """Text that is certainly part of the answer; after ``stopped`` there is no more."""
        if self.stopped:
            return ""
        if not self._stops:
            return text
        held = self._held + text
        found = [(start + len(stop), start) for stop in self._stops if (start := held.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return held[: min(found)[1]]
        keep = max((_partial_match(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def finish(self) -> str:
        """What was held back and turned out not to be a stop string."""
        held, self._held = self._held, ""
        return held


def _partial_match(text: str, stop: str) -> int:
    """The length of the longest end of ``text`` that ``stop`` begins with, short of all of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
