"""What `chat` would do with a GGUF: load it or not, and with which template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zephyr_local.chat_template import ChatTemplate
from zephyr_local.errors import ModelFileError, TemplateError
from zephyr_local.gguf_check import check_runnable
from zephyr_local.gguf_file import GGUFFile, read_gguf
from zephyr_local.gguf_split import join_parts


@dataclass(frozen=True, slots=True)
class Verdict:
    """Exactly one of the three is set: why not, with which template, or why one must be given."""

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
    """Decided from the header alone, without native code; a template that is not known is named and not run."""
    try:
        check_runnable(gguf)
    except ModelFileError as error:
        return Verdict(str(error), None, None)
    try:
        template, assumed = ChatTemplate.from_gguf_metadata(gguf.metadata, gguf.path.name)
    except TemplateError as error:
        return Verdict(None, None, str(error))
    remark = " (assumed from the name)" if assumed else " (run in a guarded process)" if template.guard else ""
    return Verdict(None, template.name + remark, None)


def read_with_verdict(path: Path) -> tuple[GGUFFile, Verdict]:
    """The model at ``path`` and the verdict on it; a part that cannot be joined with others stands alone, refused.

    Raises ModelNotFoundError and ModelFileError where the file itself cannot be read.
    """
    gguf = read_gguf(path)
    try:
        whole = join_parts(gguf)
    except ModelFileError as error:
        return gguf, Verdict(str(error), None, None)
    return whole, verdict_on(whole)
