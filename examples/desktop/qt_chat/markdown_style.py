"""How Markdown looks: the formats of a document that ``QTextDocument.setMarkdown`` has made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from look import Look
from PySide6.QtGui import (
    QBrush,
    QFont,
    QFontDatabase,
    QTextBlock,
    QTextBlockFormat,
    QTextCharFormat,
    QTextCursor,
    QTextDocument,
    QTextFormat,
    QTextFrameFormat,
    QTextTable,
)

CODE_PADDING: Final = 10
"""How far the ground of code reaches beyond its text."""

QUOTE_INDENT: Final = 16
_IS_CODE: Final = int(QTextFormat.Property.UserProperty) + 1
_HEADING_SIZES: Final = {1: 2, 2: 1}  # Qt's steps: 1.5 and 1.2 times the text's; the others are bold alone
_IMAGE: Final = "\ufffc"  # stands for one
_LINE_HEIGHT: Final = 125.0  # per cent


def is_code(block: QTextBlock) -> bool:
    """Whether a block is a line of a code block."""
    return block.isValid() and block.blockFormat().hasProperty(_IS_CODE)


def quote_level(block: QTextBlock) -> int:
    """In how many quotations a block stands."""
    return block.blockFormat().intProperty(int(QTextFormat.Property.BlockQuoteLevel))


def style(document: QTextDocument, look: Look, *, begins_in_code: bool = False, ends_in_code: bool = False) -> None:
    """Give a document the window's colours and distances.

    It may be a part whose first code goes on with that of the part before, or whose last code goes on in the next one.
    """
    is_padded_above = not begins_in_code
    whole = QTextCursor(document)
    whole.beginEditBlock()  # one change, where each alone would be looked at by the layout
    _name_images(document)
    for frame in document.rootFrame().childFrames():
        if isinstance(frame, QTextTable):
            _style_table(frame, look)
    for kind, first, last in _runs(document):
        cursor = QTextCursor(first)
        cursor.setPosition(last.position() + last.length() - 1, QTextCursor.MoveMode.KeepAnchor)
        cursor.mergeBlockFormat(_block_format(kind))
        cursor.mergeCharFormat(_char_format(kind, look))
        if kind.is_code:
            is_padded_below = not (ends_in_code and last == document.lastBlock())
            _pad_code(first if is_padded_above else None, last if is_padded_below else None)
            is_padded_above = True
        else:
            _style_code_spans(first, last, look)
    whole.endEditBlock()


@dataclass(frozen=True, slots=True)
class _Kind:
    """What blocks that look alike have in common."""

    is_code: bool
    is_item: bool
    heading: int
    quote: int


def _runs(document: QTextDocument) -> Iterator[tuple[_Kind, QTextBlock, QTextBlock]]:
    """The blocks that look alike and follow each other: what they are, the first one and the last."""
    block = first = document.begin()
    kind = _kind(first)
    while (block := block.next()).isValid():
        if (other := _kind(block)) != kind:
            yield kind, first, block.previous()
            first, kind = block, other
    yield kind, first, document.lastBlock()


def _kind(block: QTextBlock) -> _Kind:
    form = block.blockFormat()
    is_code = form.nonBreakableLines()  # Qt says this of code alone
    return _Kind(is_code, block.textList() is not None, form.headingLevel(), quote_level(block))


def _block_format(kind: _Kind) -> QTextBlockFormat:
    form = QTextBlockFormat()
    form.setLineHeight(_LINE_HEIGHT, int(QTextBlockFormat.LineHeightTypes.ProportionalHeight.value))
    if kind.is_code:
        form.setProperty(_IS_CODE, True)
        form.setNonBreakableLines(False)  # a line that is too long is wrapped, as there is no scroll bar
        form.setRightMargin(CODE_PADDING)
    elif kind.heading:
        form.setTopMargin(12)
        form.setBottomMargin(4)
    elif kind.is_item:
        form.setTopMargin(2)
        form.setBottomMargin(2)
    if kind.is_code or kind.quote:
        form.setLeftMargin(kind.quote * QUOTE_INDENT + CODE_PADDING * kind.is_code)
    return form


def _char_format(kind: _Kind, look: Look) -> QTextCharFormat:
    form = QTextCharFormat()
    if kind.is_code:
        form.setFontFamilies(_mono().families())
    elif kind.heading:
        form.setProperty(int(QTextFormat.Property.FontSizeAdjustment), _HEADING_SIZES.get(kind.heading, 0))
    elif kind.quote:
        form.setForeground(QBrush(look.faint))
    return form


def _pad_code(first: QTextBlock | None, last: QTextBlock | None) -> None:
    above, below = QTextBlockFormat(), QTextBlockFormat()
    above.setTopMargin(2 * CODE_PADDING)
    below.setBottomMargin(2 * CODE_PADDING)
    for block, padding in ((first, above), (last, below)):
        if block is not None:
            QTextCursor(block).mergeBlockFormat(padding)


def _style_table(table: QTextTable, look: Look) -> None:
    form = table.format().toTableFormat()
    form.setBorderCollapse(True)
    form.setBorder(1)
    form.setBorderStyle(QTextFrameFormat.BorderStyle.BorderStyle_Solid)
    form.setBorderBrush(QBrush(look.edge))
    form.setCellPadding(5)
    form.setTopMargin(6)
    form.setBottomMargin(6)
    table.setFormat(form)
    corner = table.cellAt(0, 0)
    cursor = corner.firstCursorPosition()
    if not cursor.block().text() and cursor.block() != corner.lastCursorPosition().block():
        # After code and quotations setMarkdown begins the first cell twice, and the second time as plain text.
        cursor.deleteChar()
        bold = QTextCharFormat()
        bold.setFontWeight(QFont.Weight.Bold)
        cursor.movePosition(QTextCursor.MoveOperation.EndOfBlock, QTextCursor.MoveMode.KeepAnchor)
        cursor.mergeCharFormat(bold)
        cursor.setBlockFormat(QTextBlockFormat())


def _style_code_spans(first: QTextBlock, last: QTextBlock, look: Look) -> None:
    """Give code within lines its font and its ground."""
    form = QTextCharFormat()
    form.setFontFamilies(_mono().families())
    form.setBackground(QBrush(look.code))
    block = first
    while block.isValid() and block.position() <= last.position():
        for start, length in _code_spans(block):
            cursor = QTextCursor(block)
            cursor.setPosition(start)
            cursor.setPosition(start + length, QTextCursor.MoveMode.KeepAnchor)
            cursor.mergeCharFormat(form)
        block = block.next()


def _code_spans(block: QTextBlock) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    iterator = block.begin()
    while not iterator.atEnd():
        fragment = iterator.fragment()
        if fragment.charFormat().fontFixedPitch():
            spans.append((fragment.position(), fragment.length()))
        iterator += 1
    return spans


def _name_images(document: QTextDocument) -> None:
    """Put words in place of images, which are not loaded."""
    while not (cursor := document.find(_IMAGE)).isNull():
        image = cursor.charFormat().toImageFormat()
        said = image.stringProperty(int(QTextFormat.Property.ImageAltText)) or image.name()
        cursor.insertText(f"[image: {said}]", QTextCharFormat())


def _mono() -> QFont:
    return QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont)
