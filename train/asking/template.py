"""A judge's instructions: a TOML file with ``system`` and ``user``, in which Jinja's marks stand for what is judged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Self

from zephyr_local.chat_types import Message
from zephyr_local.errors import InvalidInputError
from zephyr_local.train.asking.toml_file import read_toml

_KEYS: Final = ("system", "user")
_THOUGHT: Final = re.compile(r"\s*<think>.*?</think>", re.DOTALL)


def without_thought(reply: str) -> str:
    """A reply without what a reasoning model thought before it."""
    found = _THOUGHT.match(reply)
    return reply[found.end() :] if found is not None else reply


@dataclass(frozen=True, slots=True)
class JudgeTemplate:
    """What a judge is told. Text that is put in is never taken for a mark."""

    name: str
    system: str
    user: str

    @classmethod
    def read(cls, path: Path, example: Mapping[str, Any]) -> Self:
        """`example` has a value for each name that may stand in it, with which it is tried; each has to show.

        Raises InvalidInputError, naming the file.
        """
        table = read_toml(path, "judge template")
        for key, value in table.items():
            if key not in _KEYS or not isinstance(value, str):
                raise InvalidInputError(f"{path} has {key} = {value!r}", "Give system and user, each a text")
        if not str(table.get("user", "")).strip():
            raise InvalidInputError(f"{path} has no user", "Write what the judge is asked there")
        template = cls(path.stem, table.get("system", ""), table["user"])
        try:
            text = "\n".join(turn.content for turn in template.messages(example))
        except InvalidInputError as error:
            raise InvalidInputError(f"{path}: {error.problem}", error.remedy) from None
        for name, value in example.items():
            if not all(shown in text for shown in ([value] if isinstance(value, str) else value)):
                raise InvalidInputError(f"{path} does not show the judge {name}", f"Write {{{{ {name} }}}} in user")
        return template

    def messages(self, values: Mapping[str, Any]) -> tuple[Message, ...]:
        """The chat that asks for a judgment. Raises InvalidInputError for a template that cannot be filled."""
        from jinja2 import TemplateError

        try:
            texts = [_compiled(text).render(values).strip() for text in (self.system, self.user)]
        except TemplateError as error:
            raise InvalidInputError(
                f"the template cannot be filled: {error}", f"It may name {', '.join(values)}"
            ) from None
        system = [Message("system", texts[0])] if texts[0] else []
        return (*system, Message("user", texts[1]))


@lru_cache(64)
def _compiled(text: str) -> Any:  # noqa: ANN401 — jinja2 is imported late
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(text)
