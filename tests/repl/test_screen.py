from __future__ import annotations

from zephyr_local.repl.screen import at_words, sound, visible


def test_control_characters_are_shown():
    assert visible("a\x1b[31mb") == "a^[[31mb"
    assert visible("\x07\x00\r") == "^G^@^M"
    assert visible("\x9b31m\x7f") == "\\x9b31m\\x7f"
    assert visible("abc\u202edef") == "abc\\u202edef"


def test_text_is_left_alone():
    text = "Straße\t日本語 👩‍👩‍👧 naïve\nline"
    assert visible(text) == text


def test_lines_break_at_words_and_nothing_else_changes():
    assert at_words("one two three", 9) == "one two\nthree"
    assert at_words("one two", 8) == "one two"
    assert at_words("  kept   as it is", 80) == "  kept   as it is"
    assert at_words("  an indented line", 12) == "  an\nindented\nline"
    assert at_words("unbreakable/path/name and more", 10) == "unbreakable/path/name\nand more"
    assert at_words("日本 日本 日本", 9) == "日本\n日本\n日本"
    assert at_words("a\n\nb c", 3) == "a\n\nb\nc"
    assert at_words("x", 0) == "x"


def test_bytes_that_are_no_utf8_get_a_mark():
    assert sound("caf\udce9 é") == "caf\ufffd é"
