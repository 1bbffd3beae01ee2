"""What `chat` would do with a GGUF: load it or not, and with which template."""

from __future__ import annotations

from dataclasses import dataclass

from zephyr_local.chat_template import ChatTemplate
from zephyr_local.errors import ModelFileError, TemplateError
from zephyr_local.gguf_check import check_runnable
from zephyr_local.gguf_file import GGUFFile


@dataclass(frozen=True, slots=True)
class Verdict:
    """At most one of the three is set besides None: why not, with which template, or why it needs one."""

    refusal: str | None
    template: str | None
    template_refusal: str | None

    def __str__(self) -> str:
        if self.refusal is not None:
            return f"chat does not load it: {self.refusal}"
        if self.template is not None:
            return f"chat loads it; chat template: {self.template}"
        return f"chat loads it if a template is given: {self.template_refusal}"


def verdict_on(gguf: GGUFFile) -> Verdict:
    """Decided from the header alone, without native code."""
    try:
        check_runnable(gguf)
    except ModelFileError as error:
        return Verdict(str(error), None, None)
    try:
        template, assumed = ChatTemplate.from_gguf_metadata(gguf.metadata, gguf.path.name)
    except TemplateError as error:
        return Verdict(None, None, str(error))
    return Verdict(None, f"{template.name} (assumed from the name)" if assumed else template.name, None)
