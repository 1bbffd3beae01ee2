"""`zephyr-local chat`: a conversation on a terminal, one answer in a pipe."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from zephyr_local.cli.options import engine_options, sampling_options
from zephyr_local.errors import InvalidInputError
from zephyr_local.settings import BUNDLED_MODEL_SAMPLING, EngineSettings, Sampling

if TYPE_CHECKING:
    from zephyr_local.api import Zephyr

REAL_MODEL_HINT = (
    "This is zephyr-tiny, 2 MB to try things with. The real one: get a GGUF of zephyr-7b-beta, or make it with "
    "zephyr-local quantize, then zephyr-local chat FILE"
)


def _note(line: str) -> None:
    from zephyr_local.repl.screen import visible

    click.echo(click.style(visible(line), dim=True), err=True)


class _LoadBar:
    """Loading progress on stderr, only on a terminal and only where it lasts over half a second."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._start_s = time.monotonic()
        self._shown = False
        self._enabled = _is_terminal(sys.stderr)

    def update(self, fraction: float) -> None:
        if self._enabled and (self._shown or time.monotonic() - self._start_s > 0.5):
            self._shown = True
            click.echo(f"\rLoading {self._label} {fraction:4.0%} ", err=True, nl=False)

    def clear(self) -> None:
        if self._shown:
            click.echo("\r\x1b[K", err=True, nl=False)


def load_model(model: Path | None, settings: EngineSettings, template: str | None) -> Zephyr:
    """Load ``model`` (None: the bundled one), with progress and the model's notices on stderr."""
    from zephyr_local.api import Zephyr

    if model is None:
        _note(REAL_MODEL_HINT)
    bar = _LoadBar("zephyr-tiny" if model is None else model.name)
    try:
        zephyr = Zephyr(model, settings, template=template, on_progress=bar.update)
    finally:
        bar.clear()
    for notice in zephyr.notices:
        _note(notice)
    return zephyr


@click.command("chat", short_help="Talk with a model in the terminal, or answer once in a pipe.")
@click.argument("model", type=click.Path(path_type=Path), required=False)
@click.option("--prompt", "-p", metavar="TEXT", help="Answer TEXT once and leave.")
@click.option("--system", metavar="TEXT", help="System prompt: what the model is told before the conversation.")
@click.option(
    "--template", metavar="zephyr|FILE", help="Chat template, where the model has none or in place of its own."
)
@sampling_options
@engine_options
@click.option("--verbose", is_flag=True, help="Timings after each answer, and what llama.cpp warns of.")
def command(
    model: Path | None,
    prompt: str | None,
    system: str | None,
    template: str | None,
    verbose: bool,
    sampling: Sampling,
    settings: EngineSettings,
) -> None:
    """Talk with MODEL, a GGUF file; without MODEL, with the tiny model that is bundled.

    On a terminal this is a conversation: /help lists its commands, Ctrl+C stops an answer. Where stdin or stdout is
    not a terminal, one answer to what stands on stdin goes to stdout, and everything else to stderr.
    """
    source = click.get_current_context().get_parameter_source("temperature")
    if model is None and source is click.core.ParameterSource.DEFAULT:
        sampling = replace(sampling, temperature=BUNDLED_MODEL_SAMPLING.temperature)
    if verbose:
        logging.basicConfig(format="%(message)s", stream=sys.stderr)
        logging.getLogger("zephyr_local").setLevel(logging.INFO)
    if sys.stdout is None:
        raise InvalidInputError("stdout is closed", "Send it to a terminal, a file or a pipe")

    from zephyr_local.repl.conversation import Conversation
    from zephyr_local.repl.terminal import answer_once, chat_loop

    with load_model(model, settings, template) as zephyr:
        # Only now, so that a wrong MODEL is told before stdin is waited for.
        if prompt is None and not (_is_terminal(sys.stdin) and _is_terminal(sys.stdout)):
            prompt = _read_stdin()
        conversation = Conversation(zephyr, sampling, system=system, show_timings=verbose)
        if prompt is not None:
            answer_once(conversation, prompt)
        else:
            chat_loop(conversation)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()  # Python has None for a stream that was closed before it began


def _read_stdin() -> str:
    data = sys.stdin.buffer.read() if sys.stdin is not None else b""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"stdin is not UTF-8 (byte {error.start})", "Convert it first, for example with iconv"
        ) from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text.strip():
        raise InvalidInputError("stdin holds no question", 'Pipe one in, or use --prompt "…"')
    return text
