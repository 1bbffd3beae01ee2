"""Quotations and list items: what is open around a block, and what that puts before its lines."""

from __future__ import annotations

from dataclasses import dataclass

from zephyr_local.repl.markdown.charset import clusters, columns
from zephyr_local.repl.markdown.wrap import Segment

MAX_DEPTH = 20
"""Containers in each other; a marker below that is shown as text."""


@dataclass(slots=True)
class Quote:
    """A block quote: a bar on every line."""

    bar: Segment


@dataclass(slots=True)
class Item:
    """An item of a list: its marker on the first line, the others indented under its text."""

    marker: Segment
    indent: int
    """Columns of the source before the marker."""
    content: int
    """Columns of the source before the item's text."""
    marker_written: bool = False

    @property
    def least(self) -> int:
        """Columns that a line of the item is indented by at least.

        CommonMark wants ``content``; models indent what belongs to ``10. text`` by two or three as well.
        """
        return min(self.content, self.indent + 2)


Container = Quote | Item


class Containers:
    """The open containers, outermost first."""

    def __init__(self) -> None:
        self.open: list[Container] = []

    @property
    def in_list(self) -> bool:
        return any(isinstance(container, Item) for container in self.open)

    @property
    def marker_pending(self) -> bool:
        return any(isinstance(container, Item) and not container.marker_written for container in self.open)

    def segments(self, room: int) -> list[Segment]:
        """See :class:`~zephyr_local.repl.markdown.wrap.Prefix`."""
        found: list[Segment] = []
        for container in self.open:
            if isinstance(container, Item) and not container.marker_written:
                found.append(container.marker)
                continue
            if isinstance(container, Quote):
                segment = container.bar
            else:
                segment = Segment(" " * sum(map(columns, clusters(container.marker.text))))
            room -= len(segment.text)
            if room >= 0:
                found.append(segment)
        return found

    def markers_written(self) -> None:
        for container in self.open:
            if isinstance(container, Item):
                container.marker_written = True
