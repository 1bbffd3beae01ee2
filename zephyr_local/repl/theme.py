"""Colours of the terminal chat: a style by what a text is, in the terminal's own sixteen colours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal

ThemeName = Literal["auto", "light", "dark", "none"]

_RESET = "\x1b[0m"


@dataclass(frozen=True, slots=True)
class Theme:
    """Parameters of SGR sequences (``"1;36"``: bold, cyan) by role; empty: shown as plain text."""

    title: str = ""
    """A heading of the first level; the deeper ones are ``heading``."""
    heading: str = ""
    strong: str = ""
    emphasis: str = ""
    strike: str = ""
    code: str = ""
    """Code within a line. Where it is empty, its backticks are shown, for nothing else would tell it apart."""
    link: str = ""
    url: str = ""
    quote: str = ""
    """The bar beside a quotation."""
    bullet: str = ""
    rule: str = ""
    table_head: str = ""
    table_line: str = ""
    code_keyword: str = ""
    code_builtin: str = ""
    code_name: str = ""
    """What is defined or decorates: functions, classes, tags, attributes."""
    code_string: str = ""
    code_number: str = ""
    code_comment: str = ""
    code_inserted: str = ""
    code_deleted: str = ""
    prompt: str = ""
    note: str = ""
    """Lines of ours between the model's: timings, a code block's language."""
    error: str = ""
    warning: str = ""

    def paint(self, text: str, style: str) -> str:
        """``text`` (already made visible) in a style, which ends with it."""
        return f"\x1b[{style}m{text}{_RESET}" if style else text


# Colours that read on black and on white: neither yellow nor blue, and no bright ones.
_EITHER = Theme(
    title="1;4;36",
    heading="1;36",
    strong="1",
    emphasis="3",
    strike="9",
    code="36",
    link="4",
    url="2",
    quote="2",
    bullet="36",
    rule="2",
    table_head="1",
    table_line="2",
    code_keyword="35",
    code_builtin="36",
    code_name="1",
    code_string="32",
    code_number="36",
    code_comment="2;3",
    code_inserted="32",
    code_deleted="31",
    prompt="1;36",
    note="2",
    error="1;31",
    warning="35",
)

_DARK = replace(
    _EITHER,
    title="1;4;96",
    heading="1;96",
    code="96",
    bullet="96",
    link="4;94",
    code_keyword="95",
    code_builtin="96",
    code_name="94",
    code_string="92",
    code_number="93",
    code_inserted="92",
    code_deleted="91",
    prompt="1;96",
    error="1;91",
    warning="93",
)

_LIGHT = replace(
    _EITHER,
    title="1;4;34",
    heading="1;34",
    code="34",
    bullet="34",
    link="4;34",
    code_name="34",
    code_number="31",
    prompt="1;34",
    error="1;31",
)

# Bold, dim, italic, underlined and struck are no colours.
_UNCOLOURED = frozenset({"1", "2", "3", "4", "9"})


def choose_theme(name: ThemeName, environ: Mapping[str, str]) -> Theme:
    """The theme of this name for the terminal that ``environ`` tells of.

    ``TERM=dumb`` means no style at all, as ``"none"`` does. ``NO_COLOR`` (https://no-color.org) takes the colours and
    leaves what is not one. ``"auto"`` goes by the background in ``COLORFGBG``, which some terminals set; without it,
    by colours that read on either.
    """
    if name == "none" or environ.get("TERM") == "dumb":
        return Theme()
    if name == "auto":
        dark = _background_is_dark(environ.get("COLORFGBG", ""))
        theme = _EITHER if dark is None else _DARK if dark else _LIGHT
    else:
        theme = _DARK if name == "dark" else _LIGHT
    return _without_colours(theme) if environ.get("NO_COLOR") else theme


def _background_is_dark(colours: str) -> bool | None:
    """What the last field of ``COLORFGBG`` (``"15;0"``, ``"0;default;15"``) says; None: nothing."""
    background = colours.rpartition(";")[2]
    if not (background.isascii() and background.isdigit()) or int(background) > 15:
        return None
    return int(background) in (0, 1, 2, 3, 4, 5, 6, 8)  # black to cyan, and grey: as Vim takes them


def _without_colours(theme: Theme) -> Theme:
    styles: dict[str, str] = {field.name: getattr(theme, field.name) for field in fields(theme)}
    return Theme(**{role: ";".join(s for s in style.split(";") if s in _UNCOLOURED) for role, style in styles.items()})
