"""Which colours the terminal chat takes."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from zephyr_local.repl.theme import Theme, choose_theme


def styles(theme: Theme) -> dict[str, list[int]]:
    return {
        field.name: [int(part) for part in getattr(theme, field.name).split(";") if part] for field in fields(theme)
    }


def numbers(theme: Theme) -> set[int]:
    return {number for found in styles(theme).values() for number in found}


@pytest.mark.parametrize("name", ["auto", "light", "dark"])
def test_a_theme_is_made_of_attributes_and_the_sixteen_colours(name):
    theme = choose_theme(name, {"TERM": "xterm"})
    assert all(re.fullmatch(r"(\d+(;\d+)*)?", getattr(theme, field.name)) for field in fields(theme))
    assert numbers(theme) <= {1, 2, 3, 4, 9, *range(30, 38), *range(90, 98)}
    assert all((theme.strong, theme.emphasis, theme.code, theme.heading, theme.error))


def test_light_has_no_bright_colour_and_dark_no_plain_blue():
    light, dark, either = (numbers(choose_theme(name, {})) for name in ("light", "dark", "auto"))
    assert not light & {33, 37, *range(90, 98)}
    assert not dark & {30, 34}
    assert not either & {30, 33, 34, 37, *range(90, 98)}


@pytest.mark.parametrize("name", ["auto", "light", "dark"])
def test_no_color_leaves_what_is_no_colour(name):
    theme = choose_theme(name, {"NO_COLOR": "1", "COLORFGBG": "15;0"})
    assert numbers(theme) == {1, 2, 3, 4, 9}
    assert (theme.strong, theme.emphasis, theme.title, theme.code) == ("1", "3", "1;4", "")


def test_an_empty_no_color_says_nothing():
    assert choose_theme("dark", {"NO_COLOR": ""}) == choose_theme("dark", {})


@pytest.mark.parametrize(
    ("name", "environ"), [("none", {}), ("auto", {"TERM": "dumb"}), ("dark", {"TERM": "dumb", "COLORFGBG": "15;0"})]
)
def test_no_style_at_all(name, environ):
    assert choose_theme(name, environ) == Theme()


@pytest.mark.parametrize(
    ("colours", "like"),
    [
        ("15;0", "dark"),
        ("0;default;8", "dark"),
        ("0;15", "light"),
        ("0;7", "light"),
        ("0;default;15", "light"),
        ("15;default", "auto"),
        ("", "auto"),
        ("x;²", "auto"),
        ("0;99999", "auto"),
    ],
)
def test_auto_goes_by_the_background(colours, like):
    assert choose_theme("auto", {"COLORFGBG": colours}) == choose_theme(like, {})


def test_paint_ends_what_it_begins():
    assert Theme(note="2").paint("text", "2") == "\x1b[2mtext\x1b[0m"
    assert Theme().paint("text", "") == "text"
