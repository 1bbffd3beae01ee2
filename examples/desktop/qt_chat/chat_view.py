"""The chat: a column of turns that follows a ChatModel, and shows the answer that is being written as it grows."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

from look import Look, current_look
from PySide6.QtCore import QModelIndex, QPersistentModelIndex, QRect, Qt, QTimer, Signal
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QFrame, QScrollArea, QWidget
from turn_view import TurnView

from zephyr_local.desktop.qt import ChatModel

_EVERY_S: Final = 0.08  # an answer that grows is rendered no more often
_EVERY_COST: Final = 4  # nor, where that takes long, for more than a fifth of the time
_SLICE_S: Final = 0.008  # a long chat is laid out in parts of this length, between which the window can be used
_GAP: Final = 8
_MARGIN: Final = 18
_MOST_WIDTH: Final = 840
_NEAR_END: Final = 12
_DELETED_AT_ONCE: Final = 20
_UNKNOWN_HEIGHT: Final = 80


class ChatView(QScrollArea):
    """Only the last turn is laid out again while an answer grows; the view follows it where it stood at the end."""

    regenerate = Signal()
    continue_answer = Signal()

    def __init__(self, chat: ChatModel, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._chat = chat
        self._look = current_look()
        self._turns: list[TurnView | None] = []  # None: not made yet
        self._heights: list[int] = []
        self._is_ready = False
        self._follows = True
        self._is_placing = False
        self._rendered_s = self._cost_s = 0.0  # when the growing answer was rendered last, and how long that took
        self._grow = QTimer(self)
        self._grow.setSingleShot(True)
        self._grow.timeout.connect(self._show_growing)
        self._fit = QTimer(self)
        self._fit.setSingleShot(True)
        self._fit.timeout.connect(self._fit_some)
        self._gone: list[TurnView] = []
        self._bury = QTimer(self)
        self._bury.setSingleShot(True)
        self._bury.timeout.connect(self._delete_some)
        self._column = QWidget()
        self._column.setObjectName("column")
        self.setWidget(self._column)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setAccessibleName("Chat")
        self.verticalScrollBar().valueChanged.connect(self._scrolled)
        self.verticalScrollBar().setSingleStep(24)
        chat.rowsInserted.connect(self._inserted)
        chat.rowsRemoved.connect(self._removed)
        chat.dataChanged.connect(self._changed)
        chat.modelReset.connect(self._reset)
        self._reset()

    @property
    def turns(self) -> tuple[TurnView, ...]:
        """What is shown, the first turn first."""
        return tuple(turn for turn in self._turns if turn is not None)

    def set_ready(self, *, is_ready: bool) -> None:
        """Tell whether the model can be asked."""
        self._is_ready = is_ready
        self._mark_last()

    def set_look(self, look: Look) -> None:
        """Take other colours."""
        self._look = look
        for turn in self.turns:
            turn.set_look(look)
        self._fit_some()

    def follow(self) -> None:
        """Go to the end, and stay there while the chat grows."""
        self._follows = True
        self._place()

    # --- what the chat says ---

    def _reset(self) -> None:
        self._removed(QModelIndex(), 0, len(self._turns) - 1)
        self._follows = True
        self._inserted(QModelIndex(), 0, self._chat.rowCount() - 1)

    def _inserted(self, _: QModelIndex | QPersistentModelIndex, first: int, last: int) -> None:
        n_rows = last + 1 - first
        self._turns[first:first] = [None] * n_rows
        self._heights[first:first] = [_UNKNOWN_HEIGHT] * n_rows
        self._mark_last()
        self._fit_some()

    def _removed(self, _: QModelIndex | QPersistentModelIndex, first: int, last: int) -> None:
        for turn in self._turns[first : last + 1]:
            if turn is not None:
                turn.hide()
                self._gone.append(turn)
        self._bury.start(0)
        del self._turns[first : last + 1], self._heights[first : last + 1]
        self._mark_last()
        self._place()

    def _delete_some(self) -> None:
        for turn in self._gone[:_DELETED_AT_ONCE]:
            turn.deleteLater()
        del self._gone[:_DELETED_AT_ONCE]
        if self._gone:
            self._bury.start(0)

    def _changed(self, first: QModelIndex, last: QModelIndex) -> None:
        rows = range(first.row(), last.row() + 1)
        if list(rows) == [len(self._turns) - 1] and self._said(rows[0], ChatModel.Role.StateRole) == "writing":
            if not self._grow.isActive():
                due_s = self._rendered_s + max(_EVERY_S, _EVERY_COST * self._cost_s)
                self._grow.start(max(0, round(1000 * (due_s - time.monotonic()))))
            return
        for row in rows:
            if (turn := self._turns[row]) is None:
                continue
            turn.is_shown = False
            if turn.role != self._said(row, ChatModel.Role.RoleRole):  # of another chat
                self._removed(QModelIndex(), row, row)
                self._inserted(QModelIndex(), row, row)
        self._fit_some()

    def _said(self, row: int, role: ChatModel.Role) -> str:
        return str(self._chat.data(self._chat.index(row, 0), role))

    # --- the layout ---

    def _show_growing(self) -> None:
        begin_s = time.monotonic()
        if self._turns:
            if (turn := self._turns[-1]) is not None:
                turn.is_shown = False
            self._fit_rows([len(self._turns) - 1])
        self._rendered_s = time.monotonic()
        self._cost_s = self._rendered_s - begin_s

    def _fit_some(self) -> None:
        """Lay out turns that need it, those in view first, then upwards from the last."""
        width = self._width()
        top = self.verticalScrollBar().value()
        in_view = range(top, top + self.viewport().height())
        stale: list[tuple[bool, int]] = []
        for row, turn in enumerate(self._turns):
            if turn is None or turn.fitted_width != width or not turn.is_shown:
                is_in_view = turn is not None and turn.y() < in_view.stop and turn.y() + turn.height() > in_view.start
                stale.append((not is_in_view, -row))
        self._fit_rows(-row for _, row in sorted(stale))

    def _fit_rows(self, rows: Iterable[int]) -> None:
        end_s = time.monotonic() + _SLICE_S
        for row in rows:
            if time.monotonic() > end_s:
                self._fit.start(0)
                break
            turn = self._turns[row] or self._made(row)
            if not turn.is_shown:
                turn.show_turn(self._said(row, ChatModel.Role.TextRole), self._said(row, ChatModel.Role.StateRole))
                self._mark(row)
            self._heights[row] = turn.fit(self._width())
        self._place()

    def _made(self, row: int) -> TurnView:
        turn = TurnView(self._said(row, ChatModel.Role.RoleRole), self._look, self._column)
        turn.regenerate.connect(self.regenerate)
        turn.continue_answer.connect(self.continue_answer)
        self._turns[row] = turn
        turn.show()
        return turn

    def _place(self) -> None:
        """Put each turn below the one before it; what is in view keeps its place."""
        bar = self.verticalScrollBar()
        anchor, offset = None if self._follows else self._first_in_view(), 0
        if anchor is not None:
            offset = bar.value() - anchor.y()
        width, port = self._width(), self.viewport()
        left, top = (port.width() - width) // 2, _MARGIN
        self._is_placing = True
        for turn, height in zip(self._turns, self._heights, strict=True):
            if turn is not None and turn.geometry() != (place := QRect(left, top, width, height)):
                turn.setGeometry(place)
            top += height + _GAP
        self._column.resize(port.width(), max(top + _MARGIN - _GAP, port.height()))
        if self._follows:
            bar.setValue(bar.maximum())
        elif anchor is not None:
            bar.setValue(anchor.y() + offset)
        self._is_placing = False

    def _first_in_view(self) -> TurnView | None:
        top = self.verticalScrollBar().value()
        return next((turn for turn in self._turns if turn is not None and turn.geometry().bottom() >= top), None)

    def _width(self) -> int:
        return max(120, min(self.viewport().width() - 2 * _MARGIN, _MOST_WIDTH))

    def _mark_last(self) -> None:
        for row in range(max(0, len(self._turns) - 4), len(self._turns)):  # also what was the last one before
            self._mark(row)

    def _mark(self, row: int) -> None:
        if (turn := self._turns[row]) is not None:
            turn.set_last(is_last=row == len(self._turns) - 1, is_ready=self._is_ready)

    def _scrolled(self, value: int) -> None:
        if not self._is_placing:
            self._follows = value >= self.verticalScrollBar().maximum() - _NEAR_END

    # --- what Qt calls ---

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802
        """Lay the turns out for another width."""
        super().resizeEvent(event)
        self._fit_some()
