"""The dialog that chooses a model: what is on this machine, and whether it fits the memory that is free."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from look import WARNING, current_look, mixed
from PySide6.QtCore import QObject, Qt, QThreadPool, Signal
from PySide6.QtGui import QBrush, QColor
from PySide6.QtWidgets import (
    QAbstractItemView,
    QDialog,
    QFileDialog,
    QFrame,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QPushButton,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from zephyr_local import EngineSettings, LocalModel, ZephyrError, local_models

_COLUMNS: Final = ("Model", "Type", "Size", "Memory needed", "Fits?")
_NUMBERS: Final = (2, 3)
_FITS: Final = QColor(46, 139, 87)


class _Search(QObject):
    """Finds the models on another thread: headers are read, and there may be many files."""

    found = Signal(object)
    failed = Signal(str)

    def start(self, settings: EngineSettings) -> None:
        QThreadPool.globalInstance().start(lambda: self._run(settings))

    def _run(self, settings: EngineSettings) -> None:
        try:
            self.found.emit(local_models(settings))
        except ZephyrError as error:
            self.failed.emit(str(error))


class ModelChooser(QDialog):
    """``chosen`` brings the path of the model to load."""

    chosen = Signal(str)

    def __init__(self, settings: EngineSettings, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Choose a model")
        self.resize(760, 420)
        self._models: Sequence[LocalModel] = ()
        self._head = QLabel("Looking for models on this machine…")
        self._detail = QLabel(" ")
        self._detail.setObjectName("status")
        self._detail.setTextFormat(Qt.TextFormat.PlainText)
        self._detail.setWordWrap(True)
        self.table = _table()
        self.table.itemSelectionChanged.connect(self._selected)
        self.table.cellDoubleClicked.connect(lambda row, _: self._choose(row))
        self.load_button = QPushButton("Load")
        self.load_button.setObjectName("load")
        self.load_button.setEnabled(False)
        self.load_button.clicked.connect(lambda: self._choose(self.table.currentRow()))
        open_button = QPushButton("Open a file…")
        open_button.clicked.connect(self._open_file)
        cancel_button = QPushButton("Cancel")
        cancel_button.clicked.connect(self.reject)
        buttons = QHBoxLayout()
        buttons.addWidget(open_button)
        buttons.addStretch()
        for button in (cancel_button, self.load_button):
            buttons.addWidget(button)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(18, 16, 18, 16)
        layout.setSpacing(10)
        layout.addWidget(self._head)
        layout.addWidget(self.table, 1)
        layout.addWidget(self._detail)
        layout.addLayout(buttons)
        self._search = _Search()  # not a child: the dialog may be gone before it has found anything
        self._search.found.connect(self._show_models)
        self._search.failed.connect(self._head.setText)
        self._search.start(settings)

    def _show_models(self, models: Sequence[LocalModel]) -> None:
        self._models = models
        n_fit = sum(model.problem is None and model.missing_bytes == 0 for model in models)
        self._head.setText(f"{len(models)} on this machine, of which {n_fit} fit the memory that is free now.")
        self.table.setRowCount(len(models))
        for row, model in enumerate(models):
            for column, text in enumerate(_cells(model)):
                item = QTableWidgetItem(text)
                item.setToolTip(str(model.path))
                if column in _NUMBERS:
                    item.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
                elif column == len(_COLUMNS) - 1:
                    item.setForeground(QBrush(self._verdict_color(model)))
                self.table.setItem(row, column, item)
        if models:
            self.table.selectRow(0)
            self.table.setFocus()

    def _verdict_color(self, model: LocalModel) -> QColor:
        look = current_look()
        if model.problem is None and model.missing_bytes is None:
            return look.faint
        is_good = model.problem is None and model.missing_bytes == 0
        return mixed(_FITS if is_good else WARNING, look.text, 0.8)

    def _selected(self) -> None:
        row = self.table.currentRow()
        if 0 <= row < len(self._models):
            model = self._models[row]
            context = "" if model.n_ctx is None else f"; {model.n_ctx:,} tokens of context"
            self._detail.setText(model.problem or f"{model.path} ({model.place}{context})")
            self.load_button.setEnabled(model.problem is None)

    def _choose(self, row: int) -> None:
        if 0 <= row < len(self._models) and self._models[row].problem is None:
            self._take(str(self._models[row].path))

    def _open_file(self) -> None:
        dialog = QFileDialog(self, "Open a model", str(Path.home()), "Models (*.gguf);;All files (*)")
        dialog.setFileMode(QFileDialog.FileMode.ExistingFile)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.fileSelected.connect(self._take)
        dialog.open()

    def _take(self, path: str) -> None:
        self.accept()
        self.chosen.emit(path)


def _table() -> QTableWidget:
    table = QTableWidget(0, len(_COLUMNS))
    table.setHorizontalHeaderLabels(list(_COLUMNS))
    table.setAccessibleName("Models on this machine")
    table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
    table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
    table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
    table.setTabKeyNavigation(False)
    table.setShowGrid(False)
    table.verticalHeader().hide()
    table.verticalHeader().setDefaultSectionSize(32)
    table.setFrameShape(QFrame.Shape.NoFrame)
    header = table.horizontalHeader()
    header.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
    for column in _NUMBERS:
        title = table.horizontalHeaderItem(column)
        if title is not None:
            title.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
    header.setHighlightSections(False)
    header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
    header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
    return table


def _cells(model: LocalModel) -> tuple[str, str, str, str, str]:
    needed = "" if model.needed_bytes is None else _size(model.needed_bytes)
    return (model.name, model.file_type or "", _size(model.size_bytes), needed, _verdict(model))


def _verdict(model: LocalModel) -> str:
    if model.problem is not None:
        return "cannot be loaded"
    if model.missing_bytes is None:
        return "unknown"
    return "fits" if model.missing_bytes == 0 else f"{_size(model.missing_bytes)} missing"


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{max(1, round(n_bytes / 1e6))} MB"
