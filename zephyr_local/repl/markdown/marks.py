"""The rules of what marks within a line look like: CommonMark's and GitHub's, where not said otherwise."""

from __future__ import annotations

import re
import unicodedata

from zephyr_local.repl.markdown.wrap import is_wide

PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")

_TEXT = r"(?:[^\[\]\\]++|\\.|\[[^\[\]]*+\])*+"
_ADDRESS = r"(?:[^\s()\\]++|\\.|\([^\s()]*+\))*+"
LINK = re.compile(
    rf"\[({_TEXT})\]\([ \t]*+(<[^<>]*+>|{_ADDRESS})" r"""(?:[ \t]++(?:"[^"]*+"|'[^']*+'|\([^()]*+\)))?[ \t]*+\)"""
)
_TITLE_BEGUN = r"""(?:"[^"]*+(?:"[ \t]*+)?|'[^']*+(?:'[ \t]*+)?|\([^()]*+(?:\)[ \t]*+)?)"""
_ADDRESS_BEGUN = rf"\([ \t]*+(?:<[^<>]*+>?|{_ADDRESS})(?:\\|\([^\s()]*+|[ \t]++{_TITLE_BEGUN}?)?"
LINK_BEGUN = re.compile(rf"\[{_TEXT}(?:\\|\[[^\[\]]*+|\](?:{_ADDRESS_BEGUN})?)?")
"""All of what may become a :data:`LINK` yet."""

AUTOLINK = re.compile(r"<([A-Za-z][A-Za-z0-9+.-]{1,31}:[^\s<>]*|[\w.+-]+@[\w-]+(?:\.[\w-]+)+)>")
AUTOLINK_BEGUN = re.compile(r"<(?:[A-Za-z][A-Za-z0-9+.-]{0,31}(?::[^\s<>]*)?|[\w.+-]+(?:@[\w.-]*)?)?")

# As pandoc has it: no space inside the dollars, no digit after them ("$5 and $6" are money).
MATH = re.compile(r"\$[^\s$\d](?:[^$]*[^\s$])?\$(?=\D)")

_ESCAPED = re.compile(r"\\([!-/:-@\[-`{-~])")


def _closer(mark: str, count: int) -> re.Pattern[str]:
    m = re.escape(mark)
    run = rf"(?:{m}|{m}{{3}})" if count == 1 else rf"{m}{{2,}}" if count == 2 else rf"{m}+"
    return re.compile(rf"(?<=[^\s{m}]){run}(?=[^{m}\w])" if mark == "_" else rf"(?<=[^\s{m}]){run}(?=[^{m}])")


CLOSERS = {(mark, count): _closer(mark, count) for mark in "*_~" for count in (1, 2, 3)}
"""What may close a run of so many marks: a run after text, with the character after it."""


def unescaped(text: str) -> str:
    """``text`` without the backslashes before punctuation."""
    return _ESCAPED.sub(r"\1", text)


def is_punctuation(ch: str) -> bool:
    """Punctuation or a symbol."""
    return ch in PUNCTUATION or (ch > "\x7f" and unicodedata.category(ch)[0] in "PS")


def flanks(mark: str, before: str, after: str) -> tuple[bool, bool]:
    """Whether a run of marks between two characters may open, and whether it may close.

    CommonMark's rules of flanking, with two exceptions. Beside Chinese and Japanese, which have no spaces, punctuation
    keeps a run from neither. And stars between letters or digits open nothing: ``2*3*4`` and ``a**b`` are arithmetic.
    """
    spaced_left, spaced_right = before.isspace(), after.isspace()
    stop_left, stop_right = is_punctuation(before), is_punctuation(after)
    left = not spaced_right and (not stop_right or spaced_left or stop_left or is_wide(before))
    right = not spaced_left and (not stop_left or spaced_right or stop_right or is_wide(after))
    if mark == "_":
        return left and (not right or stop_left), right and (not left or stop_right)
    within_word = before.isalnum() and after.isalnum() and not is_wide(before) and not is_wide(after)
    return left and not within_word, right


def may_close(before: str) -> bool:
    """Whether stars after ``before`` close what is open though the rules forbid it, as in ``**Note:**text``."""
    return not before.isspace() and unicodedata.category(before) not in ("Ps", "Pi")
