"""The `zephyr-local` command: finds the verb, and turns errors into one line and an exit code."""

from __future__ import annotations

import importlib
import itertools
import os
import signal
import sys
from typing import Any

import click

from zephyr_local.errors import ZephyrError

# A verb is imported when it is used: `chat` must not wait for what `quantize` needs.
VERBS = {
    "chat": "Talk with a model in the terminal, or answer once in a pipe.",
    "chats": "List, show, search, export and remove saved chats.",
    "config": "Show or change the configuration.",
    "pull": "Get a model from a hub: the file that fits this machine.",
    "models": "List, find, name, check and remove models; see which fit.",
    "doctor": "Show what is installed, what this machine has, and what is wrong.",
    "inspect": "Show a GGUF file's metadata and tensors.",
    "quantize": "Turn a checkpoint, an adapter or a GGUF into quantized GGUFs.",
    "convert": "Write a model as a plain GGUF, or an adapter as a GGUF adapter.",
    "train": "Train a model: dialogues to dSFT to dDPO, and to a GGUF.",
    "data": "Make training data: dialogues and preference pairs.",
    "evaluate": "Measure a model: MT-Bench, AlpacaEval, preferences.",
}

EXIT_CODES = """\b
Exit codes: 0 done, 1 failed (the line on stderr says why), 2 wrong usage or value, 3 model not found,
4 not enough memory, 5 context exceeded, 6 engine failed, 7 the model hub refused or could not be reached,
130 interrupted by Ctrl+C.
"""


class LazyVerbs(click.Group):
    """A group whose commands live in one module each and are imported when called for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f"zephyr_local.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # From the table above, so that --help imports no verb.
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from zephyr_local import __version__
    from zephyr_local.engine.llama import native_version

    click.echo(f"zephyr-local {__version__}\n{native_version()}")
    ctx.exit()


def _go_offline(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from zephyr_local.offline import go_offline

        go_offline()


@click.group(cls=LazyVerbs, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show versions."
)
@click.option("--debug", is_flag=True, expose_value=False, help="Show Python's traceback when something fails.")
@click.option(
    "--offline",
    is_flag=True,
    expose_value=False,
    callback=_go_offline,
    help="Let no connection leave this machine, as ZEPHYR_LOCAL_OFFLINE=1 does.",
)
def app() -> None:
    """An aligned Mistral on your own laptop: chat with it offline, or make its GGUF from however it was saved."""


def _report(problem: str) -> None:
    # A message may quote a path or a piece of a damaged file: nothing of it may move the cursor or end the process.
    from zephyr_local.repl.screen import visible

    click.echo(f"zephyr-local: error: {visible(problem)}", err=True)


def run(argv: list[str]) -> int:
    """Run one command line (without the program's name) and return its exit code."""
    # Needed where parsing itself fails; it stands before the verb.
    debug = "--debug" in itertools.takewhile(lambda word: word.startswith("-"), argv)
    if os.environ.get("ZEPHYR_LOCAL_OFFLINE"):  # Hugging Face's libraries have a variable of their own
        from zephyr_local.offline import go_offline, is_offline

        if is_offline():
            go_offline()
    try:
        result: Any = app.main(args=argv, prog_name="zephyr-local", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ZephyrError as error:
        if debug:
            raise
        _report(str(error))
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):  # click has ended the line that ^C stands on
        if debug:
            raise
        return 128 + signal.SIGINT
    except SystemExit:
        # click's way out where the reader of our output left (`| head`); it has silenced stdout. Nobody was wronged.
        return 0
    except OSError as error:
        if debug:
            raise
        where = f" {error.filename}" if error.filename else ""
        _report(f"the system refused{where}: {error.strerror or error}. Check the disk, the file and its permissions")
        return 1
    except Exception as error:
        if debug:
            raise
        _report(f"{type(error).__name__}: {error}. This is a mistake of ours; --debug before the verb shows where")
        return 1


def main() -> None:
    """Entry point of the `zephyr-local` script."""
    sys.exit(run(sys.argv[1:]))
