"""`zephyr-local data`: training data recognised, checked, cleaned and reported."""

from __future__ import annotations

import importlib

import click

STEPS = {
    "dialogues": "UltraChat, ShareGPT, Alpaca or OpenAI messages to clean dialogues.",
    "feedback": "Prompts to rated answers: models answer, a judge rates, in UltraFeedback's format.",
    "preferences": "UltraFeedback, pairs or AlpacaEval's annotations to preference pairs.",
}


class _LazySteps(click.Group):
    """Each step's module is imported when it is called for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(STEPS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in STEPS:
            return None
        command = importlib.import_module(f"zephyr_local.cli.data_{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(STEPS.items()))


@click.group("data", cls=_LazySteps, short_help="Make training data: dialogues and preference pairs.")
def command() -> None:
    """Read data as it is published, check and clean it, and write JSONL or Parquet with a report of what went."""
