"""PySide6 or PyQt6: the names that the Qt adapter needs, under PySide6's names and with its types.

A process can hold one of the two. Taken is the one that it has imported already, else the one that the environment
variable ``QT_API`` names (``pyside6``, ``pyqt6``; other values are for other packages), else PySide6, else PyQt6.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from zephyr_local.errors import InvalidInputError

LOGGER: Final = logging.getLogger("zephyr_local.desktop")

_T = TypeVar("_T")
_PACKAGES: Final = ("PySide6", "PyQt6")

__all__ = [
    "BINDING",
    "Property",
    "QAbstractListModel",
    "QByteArray",
    "QCoreApplication",
    "QModelIndex",
    "QObject",
    "QPersistentModelIndex",
    "Qt",
    "QtMissingError",
    "Signal",
    "Slot",
    "qml",
    "qml_slot",
    "qt_property",
]


class QtMissingError(InvalidInputError, ImportError):
    """Neither binding is there. An ImportError, too, since what raises it is an import."""


def _choose() -> ModuleType:
    """The QtCore to take."""
    for package in _PACKAGES:
        if (core := sys.modules.get(f"{package}.QtCore")) is not None:
            return core
    wanted = [package for package in _PACKAGES if package.lower() == os.environ.get("QT_API", "").lower()]
    for package in wanted or _PACKAGES:
        try:
            return importlib.import_module(f"{package}.QtCore")
        except ModuleNotFoundError as error:
            if error.name not in (package, f"{package}.QtCore"):
                raise
    if wanted:
        raise QtMissingError(
            f"QT_API asks for {wanted[0]}, which is not installed", f"Unset it, or run: pip install {wanted[0]}"
        )
    raise QtMissingError("neither PySide6 nor PyQt6 is installed", 'Run: pip install "zephyr-local[qt]"')


if TYPE_CHECKING:
    from PySide6.QtCore import (
        Property,
        QAbstractListModel,
        QByteArray,
        QCoreApplication,
        QModelIndex,
        QObject,
        QPersistentModelIndex,
        Qt,
        Signal,
        Slot,
    )

    BINDING: str
else:
    _core = _choose()
    BINDING = _core.__name__.partition(".")[0]
    QAbstractListModel = _core.QAbstractListModel
    QByteArray = _core.QByteArray
    QCoreApplication = _core.QCoreApplication
    QModelIndex = _core.QModelIndex
    QObject = _core.QObject
    QPersistentModelIndex = _core.QPersistentModelIndex
    Qt = _core.Qt
    _prefix = "" if BINDING == "PySide6" else "pyqt"
    Property = getattr(_core, f"{_prefix}Property")
    Signal = getattr(_core, f"{_prefix}Signal")
    Slot = getattr(_core, f"{_prefix}Slot")


def qml() -> ModuleType:
    """The binding's QtQml."""
    return importlib.import_module(f"{BINDING}.QtQml")


def qt_property(
    kind: type,
    get: Callable[[Any], _T],
    notify: Signal,
    set: Callable[[Any, _T], None] | None = None,  # noqa: A002 — Qt's
) -> _T:
    """A property for Qt and for Python, with the type that it has there."""
    return cast(_T, Property(kind, get, set, notify=notify))


def qml_slot(name: str, *signatures: tuple[type, ...]) -> Callable[..., None]:
    """What QML calls as ``name``: the method of that name, whose errors become errors of QML's JavaScript.

    PySide6 does that by itself, and finds the method by its name. PyQt6 calls this, and would end the process for an
    exception that leaves it.
    """

    def slot(self: QObject, *arguments: object) -> None:
        try:
            getattr(self, name)(*arguments)
        except Exception as error:
            engine = qml().qjsEngine(self)
            if engine is None:
                LOGGER.exception("a slot was called that cannot be done now")
            else:
                engine.throwError(str(error))

    for signature in signatures:
        slot = Slot(*signature, name=name)(slot)
    return slot
