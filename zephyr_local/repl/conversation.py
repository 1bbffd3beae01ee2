"""The chat of a terminal, and what is told about its answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zephyr_local.chat import Chat
from zephyr_local.chat_types import Finish
from zephyr_local.settings import Sampling

if TYPE_CHECKING:
    from zephyr_local.api import Zephyr


class Conversation:
    """A chat that may use the context to its last token, and whether its timings are shown."""

    def __init__(
        self, zephyr: Zephyr, sampling: Sampling, *, system: str | None = None, show_timings: bool = False
    ) -> None:
        self.zephyr = zephyr
        self.sampling = sampling
        self.show_timings = show_timings
        self.chat = Chat(zephyr, system=system, sampling=sampling, reserve_tokens=1)


def timing_line(finish: Finish) -> str:
    """One line of counts and rates, such as ``--verbose`` shows after an answer."""
    new_tokens = finish.prompt_tokens - finish.cached_tokens
    prefill = f"{new_tokens / finish.prompt_s:.0f}/s" if finish.prompt_s > 0 else "-"
    steps = finish.completion_tokens - 1  # the first token is sampled from the prefill's logits
    decode = f"{steps / finish.completion_s:.1f}/s" if finish.completion_s > 0 and steps > 0 else "-"
    return (
        f"[prompt {finish.prompt_tokens} tokens, {finish.cached_tokens} cached, first token after "
        f"{finish.prompt_s:.2f} s ({prefill}); answer {finish.completion_tokens} tokens, {decode}; {finish.reason}]"
    )
