"""The colours of a code block, found line by line as it streams."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from zephyr_local.repl.markdown.wrap import Piece
from zephyr_local.repl.theme import Theme

if TYPE_CHECKING:
    from pygments.lexer import Lexer  # type: ignore[import-untyped]

MAX_LINES = 400
MAX_LINE_CHARS = 2000
_LEX_BUDGET_CHARS = 250_000  # that a block may cost in all: about half a second
_WINDOW = 20  # lines that are lexed again for a new one, until it is seen that fewer do
_EVIDENCE = 10  # lines that must come out the same when lexing begins later

_Token = tuple[int, object, str]

_STYLES = {
    "Token.Keyword": "code_keyword",
    "Token.Operator.Word": "code_keyword",
    "Token.Name.Builtin": "code_builtin",
    "Token.Name.Exception": "code_builtin",
    "Token.Name.Class": "code_name",
    "Token.Name.Function": "code_name",
    "Token.Name.Decorator": "code_name",
    "Token.Name.Tag": "code_name",
    "Token.Name.Attribute": "code_name",
    "Token.Literal.String": "code_string",
    "Token.Literal.Number": "code_number",
    "Token.Comment": "code_comment",
    "Token.Generic.Inserted": "code_inserted",
    "Token.Generic.Deleted": "code_deleted",
    "Token.Generic.Heading": "code_name",
    "Token.Generic.Subheading": "code_name",
    "Token.Generic.Prompt": "code_comment",
    "Token.Generic.Output": "",
}


def language(info: str) -> str:
    """The language that an info string names: ``python`` in ``{.python title="x"}``; empty: none."""
    found = re.match(r"[\s{.]*([\w+#./-]+)", info)
    return found[1].lower() if found else ""


def _lexer(name: str) -> Lexer | None:
    if not name:
        return None
    from pygments.lexers import get_lexer_by_name  # type: ignore[import-untyped]
    from pygments.util import ClassNotFound  # type: ignore[import-untyped]

    try:
        return get_lexer_by_name(name)
    except ClassNotFound:
        return None


class Highlighter:
    """Gives the lines of a code block their styles, each from all the code before it, so that long strings are right.

    The cost of a line is bounded: past :data:`MAX_LINES`, a line of over :data:`MAX_LINE_CHARS`, or the block's budget,
    the rest of the block is plain. To that end only a tail is lexed once it gives the same as the whole.
    """

    def __init__(self, info: str, theme: Theme) -> None:
        self._theme = theme
        self._lexer = _lexer(language(info)) if theme != Theme() else None
        self._lines: list[str] = []  # what is lexed: the code, or its tail
        self._count = 0
        self._spent_chars = 0
        self._styles: dict[object, str] = {}

    def line(self, text: str) -> list[Piece]:
        """The next line, with neither tab nor newline in it, in pieces."""
        self._count += 1
        if self._count > MAX_LINES or len(text) > MAX_LINE_CHARS or self._spent_chars > _LEX_BUDGET_CHARS:
            self._lexer = None
        if self._lexer is None:
            return [Piece(text, "")]
        self._lines.append(text)
        tokens = self._lex(0)
        begin = self._chars(len(self._lines) - 1)
        pieces = [
            Piece(part, self._style(token))
            for at, token, value in tokens
            if at + len(value) > begin and (part := value[max(begin - at, 0) :].rstrip("\n"))
        ]
        if "".join(piece.text for piece in pieces) != text:
            self._lexer = None  # it stumbled
            return [Piece(text, "")]
        if len(self._lines) >= _WINDOW and len(self._lines) % _EVIDENCE == 0:
            self._shorten(tokens)
        return pieces

    def _shorten(self, tokens: list[_Token]) -> None:
        """Forget all but the last lines, if they come out the same without those before."""
        first = len(self._lines) - _EVIDENCE
        begin = self._chars(first)
        if self._lex(first) == [(at - begin, token, value) for at, token, value in tokens if at >= begin]:
            del self._lines[:first]

    def _chars(self, count: int) -> int:
        """The characters of the first lines."""
        return sum(len(line) + 1 for line in self._lines[:count])

    def _lex(self, first: int) -> list[_Token]:
        """The tokens of the lines from ``first`` on, with their places; none where the lexer fails."""
        code = "\n".join(self._lines[first:]) + "\n"
        self._spent_chars += len(code)
        try:
            return list(self._lexer.get_tokens_unprocessed(code)) if self._lexer else []
        except Exception:  # a lexer that stumbles over code must not end the answer
            return []

    def _style(self, token: object) -> str:
        style = self._styles.get(token)
        if style is None:
            kind = str(token)
            while kind not in _STYLES and "." in kind:
                kind = kind.rpartition(".")[0]
            role = _STYLES.get(kind, "")
            style = self._styles[token] = getattr(self._theme, role) if role else ""
        return style
