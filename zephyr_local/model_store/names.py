"""What a user may call a model, and when two names are the same."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Final

from zephyr_local.errors import InvalidInputError

HUB_PREFIX: Final = "hf:"

_TYPE: Final = re.compile(r"(?:iq|tq|q)\d(?:_\w+)*|bf16|f16|f32|fp16|fp32", re.IGNORECASE | re.ASCII)
# At the end of a file's name: zephyr-7b-beta.Q4_K_M, zephyr-7b-beta-q4_k_m, zephyr-UD-Q4_K_XL, Ollama's 7b-beta-q4_K_M.
_TYPE_AT_END: Final = re.compile(
    r"[-._]((?:i?q|tq)[1-8](?:_k)?(?:_(?:xxs|xs|s|m|l|xl|0|1|nl))?|bf16|f16|f32|fp16|fp32)\Z", re.IGNORECASE | re.ASCII
)
_SEPARATORS: Final = re.compile(r"[-._:\s]+")
_HUB: Final = re.compile(
    r"(?P<repository>[^/@:]+/[^/@:]+)(?:/(?P<file>[^@]+?)|:(?P<type>[^/@:]+))?(?:@(?P<revision>[^@]+))?\Z"
)


@dataclass(frozen=True, slots=True)
class HubName:
    """``hf:OWNER/REPO[/FILE | :TYPE][@REVISION]``."""

    repository: str
    file: str | None = None
    file_type: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        file = f"/{self.file}" if self.file else f":{self.file_type.lower()}" if self.file_type else ""
        return f"{HUB_PREFIX}{self.repository}{file}" + (f"@{self.revision}" if self.revision else "")


def is_hub_name(text: str) -> bool:
    """Whether it says that it is a repository's."""
    return text.startswith(HUB_PREFIX)


def parse_hub_name(text: str) -> HubName:
    """What ``hf:…`` means, the prefix left out or not; raises InvalidInputError. Owner and file are checked later."""
    # A path on Windows may have turned the slashes round.
    rest = text.removeprefix(HUB_PREFIX).replace("\\", "/")
    match = _HUB.match(rest)
    if match is None:
        raise InvalidInputError(
            f"{text!r} is not the name of a repository", "Write hf:OWNER/REPO, hf:OWNER/REPO/FILE or hf:OWNER/REPO:TYPE"
        )
    file_type = match["type"]
    if file_type is not None and not is_type(file_type):
        raise InvalidInputError(f"{file_type!r} in {text!r} is not a type", "Write one such as q4_k_m")
    return HubName(match["repository"], match["file"], canonical_type(file_type), match["revision"])


def is_type(text: str) -> bool:
    """Whether it looks like a type of weights, such as ``q4_k_m``."""
    return _TYPE.fullmatch(text) is not None


def canonical_type(text: str | None) -> str | None:
    """ggml's spelling: ``Q4_K_M``, ``F16``."""
    return None if text is None else text.upper().replace("FP", "F")


def split_type(name: str) -> tuple[str, str | None]:
    """A name as a user may type it, without the type behind the last colon: ``zephyr-7b-beta:q4_k_m``."""
    base, colon, last = name.rpartition(":")
    if colon and base and is_type(last):
        return base, canonical_type(last)
    return name, None


def type_in_name(stem: str) -> tuple[str, str | None]:
    """A file's stem without the type at its end, and the type."""
    match = _TYPE_AT_END.search(stem)
    if match is None:
        return stem, None
    return stem[: match.start()], canonical_type(match[1])


def folded(name: str) -> str:
    """The same for names that differ in case and in which separators they have."""
    return _SEPARATORS.sub("-", name.casefold()).strip("-")


def looks_like_path(text: str) -> bool:
    """Whether a name that is no file's can only be meant as a path."""
    if is_hub_name(text):
        return False
    if text.lower().endswith(".gguf") or text.startswith(("~", ".", os.sep)):
        return True
    has_separator = os.sep in text or (os.altsep is not None and os.altsep in text)
    return has_separator and text.count("/") != 1  # OWNER/REPO may be a model's name
