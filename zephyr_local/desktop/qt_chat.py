"""The turns of a chat as rows for Qt's views and for QML, the answer that is being written too."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from zephyr_local.chat_types import Message, Role
from zephyr_local.desktop.qt_binding import (
    QAbstractListModel,
    QByteArray,
    QModelIndex,
    QObject,
    QPersistentModelIndex,
    Qt,
    Signal,
    Slot,
    qt_property,
)

if TYPE_CHECKING:
    from zephyr_local.desktop.qt import ZephyrModel

RowState = Literal["whole", "writing", "cut"]
_Rows: TypeAlias = "tuple[ChatRow, ...]"


@dataclass(frozen=True, slots=True)
class ChatRow:
    """A turn, or the answer that is being written."""

    role: Role
    text: str
    state: RowState = "whole"


class ChatRows:
    """What is to be seen of a chat: the turns, and sooner than these a question and its growing answer."""

    def __init__(self) -> None:
        self.rows: _Rows = ()
        self._before: _Rows = ()  # as they were when the answer began
        self._begun: Callable[[_Rows], _Rows] | None = None  # what the answer's beginning has made of them
        self._has_text = False

    def ask(self, question: str, index: int | None = None) -> None:
        """An answer begins, to a question at the end or in place of the turn ``index``."""
        self._begin(lambda rows: (*rows[:index], ChatRow("user", question), ChatRow("assistant", "", "writing")))

    def regenerate(self) -> None:
        """Another answer to the last question begins."""
        self._begin(lambda rows: (*rows[:-1], ChatRow("assistant", "", "writing")) if rows else ())

    def continue_answer(self) -> None:
        """The last answer goes on."""
        self._begin(lambda rows: (*rows[:-1], replace(rows[-1], state="writing")) if rows else ())

    def _begin(self, begun: Callable[[_Rows], _Rows]) -> None:
        self._before, self._begun = self.rows, begun
        self.rows = begun(self.rows)
        self._has_text = False

    def add(self, text: str) -> None:
        """More of the answer that is being written."""
        last = self.rows[-1]
        self.rows = (*self.rows[:-1], replace(last, text=last.text + text))
        self._has_text = True

    def end(self, turns: Sequence[Message], is_cut: bool) -> None:
        """The answer is over; ``turns`` are what the chat has kept, and ``is_cut`` says that there was more to come."""
        written = len(self.rows) - 1 if self._has_text or not is_cut else None
        rows = []
        for index, turn in enumerate(turns):
            row = ChatRow(turn.role, turn.content)
            if index == written:
                row = replace(row, state="cut" if is_cut else "whole")
            elif index < len(self._before) and replace(self._before[index], state="whole") == row:
                row = self._before[index]
            rows.append(row)
        self.rows, self._begun = tuple(rows), None

    def open(self, turns: Sequence[Message]) -> None:
        """Another chat is on. Of its answers nobody knows any more how they ended."""
        self.rows = tuple(ChatRow(turn.role, turn.content) for turn in turns)
        if self._begun is not None:  # a question that was asked right after the wish for the other chat
            self._begin(self._begun)


class ChatModel(QAbstractListModel):
    """The chat of a :class:`zephyr_local.desktop.qt.ZephyrModel`, a row a turn; on the same thread as that.

    From a question on there is a row for it and one for its answer, which grows; where nothing comes of them, both go
    again. Roles: ``role`` (``user``, ``assistant``), ``text``, and ``state``: ``writing``, ``whole``, or ``cut`` where
    an answer was ended by a stop, a limit or an error.
    """

    class Role(IntEnum):
        """What a row has, for ``data``; the text is what Qt displays, too."""

        RoleRole = int(Qt.ItemDataRole.UserRole) + 1
        TextRole = int(Qt.ItemDataRole.UserRole) + 2
        StateRole = int(Qt.ItemDataRole.UserRole) + 3

    model_changed = Signal()

    def __init__(self, model: ZephyrModel | None = None, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._model: ZephyrModel | None = None
        self._shown: list[ChatRow] = []
        if model is not None:
            self._set_model(model)

    def _get_model(self) -> ZephyrModel | None:
        return self._model

    def _set_model(self, model: ZephyrModel | None) -> None:
        if model is self._model:
            return
        if self._model is not None:
            with contextlib.suppress(RuntimeError):  # it was destroyed
                self._model.rows_changed.disconnect(self._show)
        self._model = model
        if model is not None:
            model.rows_changed.connect(self._show)
        self._show()
        self.model_changed.emit()

    model: ZephyrModel | None = qt_property(QObject, _get_model, model_changed, _set_model)
    """Whose chat is shown."""

    def rowCount(self, parent: QModelIndex | QPersistentModelIndex = QModelIndex()) -> int:  # noqa: B008, N802 — Qt's
        """How many rows there are."""
        return 0 if parent.isValid() else len(self._shown)

    def data(self, index: QModelIndex | QPersistentModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:  # noqa: ANN401
        """What a row has for a role."""
        if not index.isValid() or not 0 <= index.row() < len(self._shown):
            return None
        row = self._shown[index.row()]
        match int(role):
            case self.Role.RoleRole:
                return row.role
            case self.Role.TextRole | Qt.ItemDataRole.DisplayRole:
                return row.text
            case self.Role.StateRole:
                return row.state
        return None

    def roleNames(self) -> dict[int, QByteArray]:  # noqa: N802 — Qt's
        """The roles as QML calls them."""
        return {
            int(self.Role.RoleRole): QByteArray(b"role"),
            int(self.Role.TextRole): QByteArray(b"text"),
            int(self.Role.StateRole): QByteArray(b"state"),
        }

    @Slot()
    def _show(self) -> None:
        """Become what the rows are now, by the smallest changes that Qt has words for: a view keeps its place."""
        new = () if self._model is None else self._model.rows
        shown = self._shown
        if len(new) < len(shown):
            self.beginRemoveRows(QModelIndex(), len(new), len(shown) - 1)
            del shown[len(new) :]
            self.endRemoveRows()
        changed = [index for index, row in enumerate(shown) if row != new[index]]
        if changed:
            first, last = changed[0], changed[-1]
            is_text_alone = all(replace(shown[index], text=new[index].text) == new[index] for index in changed)
            shown[first : last + 1] = new[first : last + 1]
            self.dataChanged.emit(self.index(first), self.index(last), _TEXT_ROLES if is_text_alone else _ALL_ROLES)
        if len(new) > len(shown):
            self.beginInsertRows(QModelIndex(), len(shown), len(new) - 1)
            shown += new[len(shown) :]
            self.endInsertRows()


_TEXT_ROLES: Final = [int(Qt.ItemDataRole.DisplayRole), int(ChatModel.Role.TextRole)]
_ALL_ROLES: Final = [*_TEXT_ROLES, int(ChatModel.Role.RoleRole), int(ChatModel.Role.StateRole)]
