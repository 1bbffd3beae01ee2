"""The text of a turn: as high as what it says, without scroll bars, and never loading anything from anywhere."""

from __future__ import annotations

import math
from typing import Final

from look import Look
from markdown_blocks import Cut, has_definitions, last_cut
from markdown_style import CODE_PADDING, QUOTE_INDENT, is_code, quote_level, style
from PySide6.QtCore import QRectF, Qt, QUrl
from PySide6.QtGui import (
    QDesktopServices,
    QPainter,
    QPaintEvent,
    QTextBlock,
    QTextCursor,
    QTextDocument,
    QTextOption,
    QWheelEvent,
)
from PySide6.QtWidgets import QFrame, QTextBrowser, QWidget

_UNDERLINE: Final = 0x4000  # md4c's: _word_ is underlined, which GitHub does not do
_FRONT_MATTER: Final = 0x100000  # Qt's: what stands between two lines "---" at the start is not shown
_DIALECT: Final = QTextDocument.MarkdownFeature(
    (QTextDocument.MarkdownFeature.MarkdownDialectGitHub.value & ~_UNDERLINE & ~_FRONT_MATTER)
    | QTextDocument.MarkdownFeature.MarkdownNoHTML.value
)
_SAFE_SCHEMES: Final = ("http", "https", "mailto")
_LARGER: Final = 1.1  # than the window's other text
_END: Final = QTextCursor.MoveOperation.End
_KEEP: Final = QTextCursor.MoveMode.KeepAnchor


class ChatText(QTextBrowser):
    """Plain text, or Markdown that may grow; links are opened outside, and only where one is clicked."""

    def __init__(self, look: Look, parent: QWidget) -> None:
        super().__init__(parent)
        self._look = look
        self._markdown = ""
        self._cut = Cut()  # what of the Markdown is not rendered again
        self._cut_at = 0  # and where it ends in the document
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setUndoRedoEnabled(False)
        self.setOpenLinks(False)
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setLineWrapMode(QTextBrowser.LineWrapMode.FixedPixelWidth)  # of fit alone, not of the size just now
        self.setWordWrapMode(QTextOption.WrapMode.WrapAtWordBoundaryOrAnywhere)
        self.setFocusPolicy(Qt.FocusPolicy.ClickFocus)  # not a stop of Tab's for every turn of a long chat
        self.viewport().setAutoFillBackground(False)
        font = self.font()
        font.setPointSizeF(font.pointSizeF() * _LARGER)
        self.setFont(font)
        self.document().setDocumentMargin(0)
        self.document().setIndentWidth(22)
        self.anchorClicked.connect(_open_outside)
        self.highlighted.connect(lambda url: self.setToolTip(url.toDisplayString()))

    def show_markdown(self, text: str, *, is_whole: bool) -> None:
        """Show Markdown. Where it continues what is shown, only the blocks that may have changed are rendered."""
        is_one = is_whole and has_definitions(text)
        if is_one or not text.startswith(self._markdown[: self._cut.at]):
            self._cut = Cut()
        cut = self._cut if is_one else last_cut(text, self._cut)
        if cut != self._cut:
            self._render(text[self._cut.at : cut.at], ends_in_code=bool(cut.fence))
            self._cut, self._cut_at = cut, self.document().characterCount() - 1
        self._render(text[cut.at :])
        self._markdown = text

    def set_look(self, look: Look) -> None:
        """Take other colours for what is shown next."""
        self._look = look
        self._cut = Cut()

    def fit(self, width: int, *, shrinks: bool = False) -> tuple[int, int]:
        """Lay the text out for a width; the width and the height that it takes."""
        document = self.document()
        self._wrap_at(width)
        if shrinks:
            width = min(width, math.ceil(document.idealWidth()) + 1)
            self._wrap_at(width)
        return width, math.ceil(document.size().height())

    def _wrap_at(self, width: int) -> None:
        if width != self.lineWrapColumnOrWidth():  # else all of it would be laid out again
            self.setLineWrapColumnOrWidth(width)

    def _render(self, markdown: str, *, ends_in_code: bool = False) -> None:
        """Put Markdown after the cut, in place of what was there."""
        is_first, fence = not self._cut.at, self._cut.fence
        part = QTextDocument()
        part.setDefaultFont(self.font())
        part.setIndentWidth(self.document().indentWidth())
        # The first block of what is inserted takes the format of the block that it comes after. So one is put before
        # it, of which the end alone is taken.
        before = "" if is_first else f"x\n\n{fence}\n"
        part.setMarkdown(before + markdown, _DIALECT)
        style(part, self._look, begins_in_code=bool(fence), ends_in_code=ends_in_code)
        source, target = QTextCursor(part), QTextCursor(self.document())
        source.setPosition(0 if is_first else 1)
        source.movePosition(_END, _KEEP)
        target.beginEditBlock()
        target.setPosition(0 if is_first else self._cut_at)
        target.movePosition(_END, _KEEP)
        target.removeSelectedText()
        target.insertFragment(source.selection())
        target.endEditBlock()

    # --- what Qt calls ---

    def loadResource(self, type: int, name: QUrl | str) -> None:  # noqa: A002, N802
        """Nothing: neither files nor what lies on the network."""

    def wheelEvent(self, event: QWheelEvent) -> None:  # noqa: N802
        """Leave the wheel to the chat."""
        event.ignore()

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        """Paint the grounds of code and the bars of quotations, then the text."""
        painter = QPainter(self.viewport())
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(self._look.code)
        block = self.cursorForPosition(event.rect().topLeft()).block()
        while is_code(block) and is_code(block.previous()):
            block = block.previous()
        while block.isValid() and self._rect(block).top() - CODE_PADDING <= event.rect().bottom():
            if is_code(block):
                ground, block = self._code_ground(block)
                painter.drawRoundedRect(ground, 6, 6)
            else:
                rect = self._rect(block)
                for level in range(quote_level(block)):
                    painter.drawRect(QRectF(level * QUOTE_INDENT + 3, rect.top(), 3, rect.height()))
                block = block.next()
        painter.end()
        super().paintEvent(event)

    def _code_ground(self, block: QTextBlock) -> tuple[QRectF, QTextBlock]:
        """The ground of the code that begins with a block, and the block after it."""
        top = self._rect(block).top()
        while True:
            bottom = self._rect(block).bottom()
            block = block.next()
            if not is_code(block):
                break
        return QRectF(0, top - CODE_PADDING, self.viewport().width(), bottom - top + 2 * CODE_PADDING), block

    def _rect(self, block: QTextBlock) -> QRectF:
        return self.document().documentLayout().blockBoundingRect(block)


def _open_outside(url: QUrl) -> None:
    if url.scheme() in _SAFE_SCHEMES:
        QDesktopServices.openUrl(url)
