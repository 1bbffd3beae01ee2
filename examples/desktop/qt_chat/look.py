"""The colours, all made from the palette: a light desktop gives a light window, a dark one a dark window."""

from __future__ import annotations

from dataclasses import dataclass

from PySide6.QtGui import QColor, QGuiApplication, QPalette

WARNING = QColor(214, 69, 65)


@dataclass(frozen=True, slots=True)
class Look:
    """What the parts of the window paint with."""

    page: QColor
    text: QColor
    faint: QColor
    accent: QColor
    question: QColor
    answer: QColor
    edge: QColor
    code: QColor
    warning: QColor


def current_look() -> Look:
    """The colours for the application's palette; a widget's own follows it late, or not where it has a style sheet."""
    palette = QGuiApplication.palette()
    page = palette.color(QPalette.ColorRole.Base)
    text = palette.color(QPalette.ColorRole.Text)
    accent = palette.color(QPalette.ColorRole.Highlight)
    return Look(
        page=page,
        text=text,
        faint=mixed(text, page, 0.58),
        accent=accent,
        question=mixed(accent, page, 0.16),
        answer=mixed(text, page, 0.04),
        edge=mixed(text, page, 0.12),
        code=mixed(text, page, 0.09),
        warning=mixed(WARNING, page, 0.16),
    )


def mixed(color: QColor, ground: QColor, share: float) -> QColor:
    """So much of a colour over another."""

    def part(of: int, over: int) -> int:
        return round(of * share + over * (1 - share))

    return QColor(
        part(color.red(), ground.red()), part(color.green(), ground.green()), part(color.blue(), ground.blue())
    )


def style_sheet(look: Look) -> str:
    """For the widgets that are not painted by hand."""
    return f"""
        QMainWindow, QDialog, #column, #header {{ background: {look.page.name()}; }}
        #header {{ border-bottom: 1px solid {look.edge.name()}; }}
        QPushButton, QToolButton {{
            border: 1px solid {look.edge.name()}; border-radius: 8px; padding: 6px 12px;
            background: {look.page.name()}; color: {look.text.name()};
        }}
        QPushButton:hover, QToolButton:hover {{ background: {look.answer.name()}; }}
        QPushButton:pressed, QToolButton:pressed {{ background: {look.code.name()}; }}
        QPushButton:disabled, QToolButton:disabled {{ color: {look.edge.name()}; }}
        QPushButton:focus, QToolButton:focus {{ border-color: {look.accent.name()}; }}
        #send, #load {{ background: {look.accent.name()}; color: white; border-color: {look.accent.name()}; }}
        #send:disabled, #load:disabled {{
            background: {look.code.name()}; color: {look.faint.name()}; border-color: {look.code.name()};
        }}
        #turnButton {{ border: none; padding: 3px 8px; color: {look.faint.name()}; background: transparent; }}
        #turnButton:hover, #turnButton:focus {{ color: {look.text.name()}; background: {look.code.name()}; }}
        #send, #stop {{ min-height: 26px; }}
        #model {{ font-weight: 600; }}
        #banner {{ background: {look.warning.name()}; border-radius: 8px; }}
        #input {{
            border: 1px solid {look.edge.name()}; border-radius: 10px; padding: 6px 8px;
            background: {look.answer.name()}; color: {look.text.name()};
        }}
        #input:focus {{ border-color: {look.accent.name()}; }}
        #status {{ color: {look.faint.name()}; }}
        QScrollBar:vertical {{ background: transparent; width: 10px; margin: 0; }}
        QScrollBar::handle:vertical {{ background: {look.edge.name()}; border-radius: 5px; min-height: 32px; }}
        QScrollBar::handle:vertical:hover {{ background: {look.faint.name()}; }}
        QScrollBar::add-line:vertical, QScrollBar::sub-line:vertical {{ height: 0; }}
        QScrollBar::add-page:vertical, QScrollBar::sub-page:vertical {{ background: transparent; }}
        QTableView {{
            outline: 0; border: 1px solid {look.edge.name()}; border-radius: 8px; background: {look.page.name()};
            selection-background-color: {look.question.name()}; selection-color: {look.text.name()};
        }}
        QTableView::item {{ padding: 0 10px; border: none; }}
        QHeaderView, QHeaderView::section {{ background: {look.page.name()}; color: {look.faint.name()}; }}
        QHeaderView::section {{
            border: none; border-bottom: 1px solid {look.edge.name()}; padding: 7px 10px; text-align: left;
        }}
        QProgressBar {{ border: none; border-radius: 3px; background: {look.code.name()}; max-height: 6px; }}
        QProgressBar::chunk {{ background: {look.accent.name()}; border-radius: 3px; }}
    """
