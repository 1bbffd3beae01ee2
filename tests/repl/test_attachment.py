"""Files that go with a message: text in a fence that nothing in it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from zephyr_local.errors import InvalidInputError
from zephyr_local.repl.attachment import read_attachment
from zephyr_local.repl.code_blocks import code_blocks


def attached(folder: Path, data: bytes, n_ctx: int = 100) -> str:
    path = folder / "a file.txt"
    path.write_bytes(data)
    return read_attachment(path, n_ctx).text


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"one\n", "a file.txt:\n```\none\n```"),
        (b"one", "a file.txt:\n```\none\n```"),
        (b"\xef\xbb\xbfone\r\ntwo\r\n", "a file.txt:\n```\none\ntwo\n```"),
        (b"a\n```\nb\n```\n", "a file.txt:\n````\na\n```\nb\n```\n````"),
        (b"`````x", "a file.txt:\n``````\n`````x\n``````"),
        (b"  indented\n\n", "a file.txt:\n```\n  indented\n\n```"),
    ],
)
def test_the_text_stands_in_a_fence(tmp_path: Path, data: bytes, text: str) -> None:
    assert attached(tmp_path, data) == text


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b" \n\t", "is empty"),
        (b"a\0b", "is not text"),
        (b"ab\xff", r"is not UTF-8 text \(byte 2\)"),
        (b"x" * 6401, "is over 6400 bytes, and the context holds 100 tokens"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        attached(tmp_path, data)


def test_the_limit_is_for_what_surely_does_not_fit(tmp_path: Path) -> None:
    assert len(attached(tmp_path, b" " * 6399 + b"x")) > 6400


@pytest.mark.parametrize("name", ["nosuch", ".", "a\0b", "a" * 300])
def test_a_path_that_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_attachment(tmp_path / name, 100)


# --- code in answers, which /copy code takes ---


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("none `here` and ```here```", []),
        ("```py\nx = 1\n```\ntext\n```\ny\n\n```", ["x = 1\n", "y\n\n"]),
        ("````md\n```py\nx\n```\n````", ["```py\nx\n```\n"]),
        ("~~~\n```\nx\n~~~", ["```\nx\n"]),
        ("1. so\n   ```\n   a\n     b\n\n  c\n   ```", ["a\n  b\n\nc\n"]),
        ("cut\n```c\nint main(", ["int main("]),
        ("```\nx\n``` no end\n```", ["x\n``` no end\n"]),
        ("```a`b\nx", []),
        ("```\n```", [""]),
        ("```\r\nx\r\n```\r\n", ["x\r\n"]),
        ("```\na\x0cb\u2028c\n```", ["a\x0cb\u2028c\n"]),
    ],
)
def test_code_blocks(text: str, blocks: list[str]) -> None:
    assert code_blocks(text) == blocks
