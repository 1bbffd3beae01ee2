"""Markdown on a terminal while it streams: what is written stays, the cursor only ever goes forward."""

from zephyr_local.repl.markdown.stream import MarkdownStream

__all__ = ["MarkdownStream"]
