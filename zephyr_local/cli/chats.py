"""`zephyr-local chats`: what is in the store of chats."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from zephyr_local.cli.utf8_text import require_utf8
from zephyr_local.errors import InvalidInputError

if TYPE_CHECKING:
    from zephyr_local.transcripts.store import ChatStore, Found

FORMATS: Final = {"markdown": ".md", "json": ".json", "sharegpt": ".json"}


@click.group("chats", short_help="List, show, search, export and remove saved chats.")
def command() -> None:
    """The chats that `zephyr-local chat` has saved. `zephyr-local chat --chat N` goes on with one."""


@command.command("path")
def path() -> None:
    """Print where the chats are kept."""
    from zephyr_local.transcripts.store import ChatStore

    click.echo(str(ChatStore.default_path()))


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="A JSON array of objects.")
def list_chats(as_json: bool) -> None:
    """List all chats, the one that was changed last first."""
    with _store() as store:
        summaries = store.summaries()
    if as_json:
        _print_json([asdict(summary) for summary in summaries])
        return
    from zephyr_local.repl.transcript_view import chat_lines

    for line in chat_lines(summaries, columns=_columns()):
        _print(line)
    if not summaries:
        click.echo("There are no saved chats.", err=True)


@command.command("show")
@click.argument("chat", type=int, metavar="N")
@click.option("--all-branches", is_flag=True, help="Every turn, with the one that it follows.")
@click.option("--plain", is_flag=True, help="On a terminal too, without rendering the Markdown.")
def show(chat: int, all_branches: bool, plain: bool) -> None:
    """Show chat N: its current branch, an answer that is not whole marked so."""
    from zephyr_local.transcripts.export import to_markdown

    with _store() as store:
        summary = store.require(chat)
        system = store.record(chat).system
        turns = store.turns(chat, all_branches=all_branches)
    if all_branches:
        for turn in turns:
            after = "the beginning" if turn.parent is None else f"turn {turn.parent}"
            _print(f"[turn {turn.node}, {turn.message.role}, after {after}, {turn.state}]\n{turn.message.content}\n")
        return
    text = to_markdown(summary.title, system, turns)
    if not sys.stdout.isatty():
        _print(text.removesuffix("\n"))
        return
    from zephyr_local.repl.theme import choose_theme
    from zephyr_local.repl.view import View

    answer = View(choose_theme("auto", os.environ), plain=plain).answer()
    answer.feed(text)
    answer.close()


@command.command("search")
@click.argument("text")
@click.option("--json", "as_json", is_flag=True, help="A JSON array of objects.")
def search(text: str, as_json: bool) -> None:
    """Find TEXT in titles and turns of all branches; upper and lower case are alike."""
    with _store() as store:
        found = store.search(require_utf8(text, "TEXT"))
    if as_json:
        _print_json([asdict(hit) for hit in found])
    else:
        _print_found(found)
    if not found:
        raise click.exceptions.Exit(1)  # as grep does


def _print_found(found: Sequence[Found]) -> None:
    from zephyr_local.repl.transcript_view import one_line

    chat = None
    for hit in found:
        if hit.chat != chat:
            _print(f"{hit.chat}  {one_line(hit.title, 60)}")
            chat = hit.chat
        if hit.role != "title":
            _print(f"    {hit.role}: {one_line(hit.snippet, 110)}")


@command.command("export")
@click.argument("chats", type=int, nargs=-1, metavar="[N]...")
@click.option("--all", "all_chats", is_flag=True, help="Every chat.")
@click.option("--format", "form", type=click.Choice(list(FORMATS)), help="Else by the ending of FILE: .md or .json.")
@click.option("--output", "-o", type=click.Path(path_type=Path), metavar="FILE", help="Else stdout.")
@click.option("--force", is_flag=True, help="Replace FILE where it exists.")
def export(chats: tuple[int, ...], all_chats: bool, form: str | None, output: Path | None, force: bool) -> None:
    """Write chats as Markdown (their current branch), as JSON (all branches of one; /load reads it), or as ShareGPT.

    A file of ShareGPT's form holds any number of chats, without answers that were interrupted or cut and their
    questions, and `zephyr-local data dialogues` reads it.
    """
    if bool(chats) == all_chats:
        raise click.UsageError("Give the numbers of chats, or --all.")
    form = form or _format_of(output)
    with _store() as store:
        numbers = [summary.id for summary in reversed(store.summaries())] if all_chats else list(dict.fromkeys(chats))
        text = _exported(store, numbers, form)
    if output is None:
        _print(text.removesuffix("\n"), encoding=None if form == "markdown" else "utf-8")
        return
    if output.exists() and not force:
        raise InvalidInputError(f"{output} exists", "Give another name, or --force")
    from zephyr_local.chat_file import write_chat

    write_chat(output, text)
    click.echo(f"Wrote {output}.", err=True)


@command.command("title")
@click.argument("chat", type=int, metavar="N")
@click.argument("title")
def title(chat: int, title: str) -> None:
    """Call chat N TITLE."""
    if not require_utf8(title, "the title").strip():
        raise InvalidInputError("the title is empty", "Give one")
    with _store() as store:
        store.rename(chat, title.strip())


@command.command("rm")
@click.argument("chats", type=int, nargs=-1, metavar="[N]...")
@click.option("--all", "all_chats", is_flag=True, help="Every chat.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def remove(chats: tuple[int, ...], all_chats: bool, yes: bool) -> None:
    """Remove chats for good; their text is overwritten in the file."""
    if bool(chats) == all_chats:
        raise click.UsageError("Give the numbers of chats, or --all.")
    with _store() as store:
        numbers = [summary.id for summary in store.summaries()] if all_chats else list(dict.fromkeys(chats))
        for number in numbers:
            store.require(number)
        if not yes:
            if sys.stdin is None or not sys.stdin.isatty():
                raise InvalidInputError("there is no terminal to ask on", "Give --yes to remove without being asked")
            question = f"Remove {len(numbers)} chat{'s' if len(numbers) != 1 else ''} for good?"
            if not click.confirm(question, err=True):
                raise click.exceptions.Exit(1)
        store.remove(numbers)
    click.echo(f"Removed {len(numbers)}.", err=True)


def _store() -> ChatStore:
    from zephyr_local.transcripts.store import ChatStore

    return ChatStore(ChatStore.default_path())


def _exported(store: ChatStore, chats: Sequence[int], form: str) -> str:
    from zephyr_local.transcripts.export import dump_sharegpt, to_json, to_markdown, to_sharegpt

    if form == "json" and len(chats) != 1:
        raise InvalidInputError(
            f"JSON holds one chat, and {len(chats)} were given", "Use --format sharegpt or markdown"
        )
    parts: list[str] = []
    conversations: list[dict[str, Any]] = []
    for chat in chats:
        summary, record, turns = store.require(chat), store.record(chat), store.turns(chat)
        if form == "json":
            return to_json(record)
        if form == "sharegpt":
            conversation = to_sharegpt(chat, record.system, turns)
            if any(entry["from"] == "gpt" for entry in conversation["conversations"]):
                conversations.append(conversation)
            else:
                click.echo(f"Chat {chat} is left out: none of its answers is whole.", err=True)
        else:
            parts.append(to_markdown(summary.title, record.system, turns))
    return dump_sharegpt(conversations) if form == "sharegpt" else "\n".join(parts)


def _format_of(output: Path | None) -> str:
    if output is None or output.suffix.lower() in (".md", ".markdown"):
        return "markdown"
    if output.suffix.lower() == ".json":
        return "json"
    raise InvalidInputError(f"{output} ends neither in .md nor in .json", f"Give --format, one of {', '.join(FORMATS)}")


def _print(text: str, *, encoding: str | None = None) -> None:
    """Text on stdout; on a terminal control characters are shown."""
    from zephyr_local.repl.screen import visible

    _reconfigure(encoding, "replace")
    click.echo(visible(text) if sys.stdout.isatty() else text)


def _print_json(value: object) -> None:
    from zephyr_local.repl.json_text import json_text

    _reconfigure("utf-8", "strict")
    click.echo(json_text(value, indent=1))


def _reconfigure(encoding: str | None, errors: str) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding=encoding, errors=errors)


def _columns() -> int:
    with contextlib.suppress(OSError, ValueError):  # no terminal
        return os.get_terminal_size(sys.stdout.fileno()).columns
    return 100
