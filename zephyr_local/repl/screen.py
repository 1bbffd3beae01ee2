"""Text on a terminal: what a model or a file says is shown, never obeyed."""

from __future__ import annotations

import re

# C0 and C1 controls but tab and newline, DEL, the characters that reorder or hide what follows them, and surrogates:
# what Python makes of a file name's bytes that are not UTF-8, which cannot be written out.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


_SURROGATES = re.compile("[\ud800-\udfff]")


def sound(text: str) -> str:
    """``text`` as it can be written and stored: U+FFFD for each byte that a terminal sent and that was no UTF-8."""
    return _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)


def _shown(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return f"^{chr(code + 0x40)}"  # the way terminals have always written them: ^[ for escape
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def visible(text: str) -> str:
    """``text`` with every control character written out, so that a terminal shows it and does nothing else."""
    return _UNSAFE.sub(_shown, text)


def at_words(text: str, columns: int, indent: int = 0) -> str:
    """``text`` (see :func:`visible`) with lines that are too long for a terminal broken at blanks, where there are any.

    Blanks stay as they are, but for those at a break. The last column stays free. Lines that go on begin at the column
    ``indent``, where that leaves half of the line.
    """
    room = max(1, columns - 1)
    blanks = " " * (indent if 2 * indent <= room else 0)
    return "\n".join(_broken(line, room, blanks) for line in text.split("\n"))


def _broken(line: str, room: int, blanks: str) -> str:
    from wcwidth import wcswidth  # for terminals alone

    if wcswidth(line) <= room:
        return line
    lines, current = [], ""
    for part in re.split("( +)", line):
        if part.strip() and current.strip() and wcswidth(current + part) > room:
            lines.append(current.rstrip(" "))
            current = blanks + part
        else:
            current += part
    return "\n".join([*lines, current.rstrip(" ")])
