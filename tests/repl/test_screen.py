from __future__ import annotations

from zephyr_local.repl.screen import visible


def test_control_characters_are_shown():
    assert visible("a\x1b[31mb") == "a^[[31mb"
    assert visible("\x07\x00\r") == "^G^@^M"
    assert visible("\x9b31m\x7f") == "\\x9b31m\\x7f"
    assert visible("abc\u202edef") == "abc\\u202edef"


def test_text_is_left_alone():
    text = "Straße\t日本語 👩‍👩‍👧 naïve\nline"
    assert visible(text) == text
