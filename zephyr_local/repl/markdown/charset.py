"""What the terminal's encoding can show of a text, and how many columns that takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import wcwidth

from zephyr_local.repl.screen import visible

_CLUSTER_LIMIT = 32  # code points: what piles up more marks than any script needs is cut

# wcwidth divides text into grapheme clusters since 0.3.
_iter_graphemes: Callable[[str], Iterator[str]] | None = getattr(wcwidth, "iter_graphemes", None)


class Charset:
    """An encoding: text as it can be shown, with "?" for each character that cannot be."""

    def __init__(self, encoding: str) -> None:
        self._unicode = _round_trips("•│─☑👍", encoding, "strict")
        self._encoding = encoding if _round_trips("a?", encoding, "replace") else "ascii"

    def shown(self, text: str) -> str:
        """``text`` without a control character and without what the encoding lacks."""
        if text.isascii() and text.isprintable():
            return text
        if not self._unicode:
            text = text.encode(self._encoding, "replace").decode(self._encoding, "replace")
        return visible(text)

    def either(self, sign: str, plain: str) -> str:
        """``sign`` where the encoding has it, else ``plain``."""
        return sign if self.shown(sign) == sign else plain


def _round_trips(text: str, encoding: str, errors: str) -> bool:
    try:
        return text.encode(encoding, errors).decode(encoding) == text
    except (UnicodeError, LookupError):
        return False


@lru_cache(maxsize=4096)
def columns(cluster: str) -> int:
    """Columns that a grapheme cluster takes on a terminal that joins it, or on one that does not: the greater number.

    Terminals disagree about emoji sequences. A line that is counted too wide only ends early; the other mistake would
    break it twice.
    """
    if len(cluster) == 1:
        return max(wcwidth.wcwidth(cluster), 0)
    return max(wcwidth.wcswidth(cluster), sum(max(wcwidth.wcwidth(ch), 0) for ch in cluster), 0)


def joins(cluster: str, ch: str) -> bool:
    """Whether ``ch`` belongs to the grapheme cluster before it."""
    if ch < "\u0300" or len(cluster) >= _CLUSTER_LIMIT:
        return False
    return _joins(cluster, ch)


@lru_cache(maxsize=4096)
def _joins(cluster: str, ch: str) -> bool:
    if _iter_graphemes is not None:
        return sum(1 for _ in _iter_graphemes(cluster + ch)) == 1
    if cluster[-1] == "\u200d" or "\U0001f3fb" <= ch <= "\U0001f3ff":  # what a joiner joins, and skin tones
        return columns(cluster) > 0
    if "\U0001f1e6" <= ch <= "\U0001f1ff":  # two regional indicators make a flag
        return len(cluster) == 1 and "\U0001f1e6" <= cluster <= "\U0001f1ff"
    return wcwidth.wcwidth(ch) == 0


def clusters(text: str) -> Iterator[str]:
    """The grapheme clusters of a text."""
    cluster = ""
    for ch in text:
        if cluster and joins(cluster, ch):
            cluster += ch
        else:
            if cluster:
                yield cluster
            cluster = ch
    if cluster:
        yield cluster
