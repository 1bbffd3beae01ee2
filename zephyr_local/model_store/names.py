"""What a user may call a model, and when two names are the same."""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final
from urllib.parse import unquote, urlsplit

from zephyr_local.errors import InvalidInputError

HUB_PREFIX: Final = "hf:"
BUNDLED_NAME: Final = "zephyr-tiny"
"""What the bundled model is called; no other model and no alias may be."""

# llama.cpp's names of types and mixes, and those that forks and the hub's uploaders made of them: Q4_K_XL, Q4_0_4_8.
_WEIGHTS: Final = (
    r"((?:i?q|tq)[1-8](?:_(?:0|1|4|8|k|ks|kss|kt|xxs|xs|s|m|l|xl|nl|r4|r8)){0,3}"
    r"|mxfp4(?:_moe)?|nvfp4|bf16|f16|f32|fp16|fp32)"
)
# How unsloth (UD, dynamic) and mradermacher (i1, with an importance matrix) say how they made it; no part of the type.
_MADE: Final = r"(?:(?:ud|i1)[-._])?"
_TYPE: Final = re.compile(_MADE + _WEIGHTS, re.IGNORECASE | re.ASCII)
# At the end of a file's name: zephyr-7b-beta.Q4_K_M, zephyr-7b-beta-q4_k_m, zephyr-UD-Q4_K_XL, Ollama's 7b-beta-q4_K_M.
_TYPE_AT_END: Final = re.compile(rf"(?:\A|[-._]){_MADE}{_WEIGHTS}\Z", re.IGNORECASE | re.ASCII)
_SEPARATORS: Final = re.compile(r"[-._:\s]+")
_HUB: Final = re.compile(
    r"(?P<repository>[^/@:]+/[^/@:]+)(?:/(?P<file>[^@]+?)|:(?P<type>[^/@:]+))?(?:@(?P<revision>[^@:]+))?\Z"
)
_HUB_HOSTS: Final = ("hf.co/", "huggingface.co/")
_HUB_PAGE: Final = re.compile(r"https?:/{1,2}(.+)", re.IGNORECASE | re.ASCII | re.DOTALL)  # a path has one slash left
_ENDPOINT_VARIABLE: Final = "HF_ENDPOINT"
_NOT_MODELS: Final = ("api", "collections", "datasets", "docs", "models", "papers", "spaces")
_MAX_SHOWN: Final = 300


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
    """Whether it says that it is a repository's: by ``hf:``, or as the address of a page of the hub."""
    return text.startswith(HUB_PREFIX) or _page_of_hub(text) is not None


def is_bundled_name(text: str) -> bool:
    """Whether it means the bundled model, where no file is called so."""
    return folded(text) == BUNDLED_NAME


def parse_hub_name(text: str) -> HubName:
    """What ``hf:…`` means, the prefix left out or not, or the address of a repository's or file's page on the hub.

    Raises InvalidInputError. Owner and file are checked later.
    """
    # A path on Windows may have turned the slashes round.
    page = _page_of_hub(text)
    rest = text.removeprefix(HUB_PREFIX).replace("\\", "/") if page is None else _name_of_page(page)
    match = _HUB.match(rest)
    if match is None:
        raise InvalidInputError(
            f"{shown_name(text)!r} is not the name of a repository",
            "Write hf:OWNER/REPO, hf:OWNER/REPO/FILE or hf:OWNER/REPO:TYPE, each with @REVISION at the end if wanted",
        )
    file_type = match["type"]
    if file_type is not None and not is_type(file_type):
        raise InvalidInputError(
            f"{shown_name(file_type)!r} in {shown_name(text)!r} is not a type", "Write one such as q4_k_m"
        )
    return HubName(match["repository"], match["file"], canonical_type(file_type), match["revision"])


def _page_of_hub(text: str) -> str | None:
    """What follows the host of an address of the hub, or of the one that is used in its place; None for all else."""
    address = _HUB_PAGE.match(text.replace("\\", "/"))
    if address is None:
        return None
    endpoint = _HUB_PAGE.match(os.environ.get(_ENDPOINT_VARIABLE, ""))
    hosts = (
        *_HUB_HOSTS,
        *(f"www.{host}" for host in _HUB_HOSTS),
        *([f"{endpoint[1].rstrip('/')}/"] if endpoint else []),
    )
    return next((address[1][len(host) :] for host in hosts if address[1].lower().startswith(host.lower())), None)


def _name_of_page(page: str) -> str:
    """``OWNER/REPO[/FILE][@REVISION]`` of ``OWNER/REPO[/blob|resolve|raw/REV/FILE | /tree/REV]``; else empty."""
    try:
        owner, name, *more = urlsplit(page).path.rstrip("/").split("/")
    except ValueError:
        return ""
    if owner in _NOT_MODELS:
        return ""
    match [unquote(part) for part in more]:
        case []:
            return f"{owner}/{name}"
        case ["tree", revision]:
            return f"{owner}/{name}@{revision}"
        case ["blob" | "resolve" | "raw", revision, *file] if file:
            return f"{owner}/{name}/{'/'.join(file)}@{revision}"
    return ""


def is_type(text: str) -> bool:
    """Whether it looks like a type of weights, such as ``q4_k_m``."""
    return _TYPE.fullmatch(text) is not None


def canonical_type(text: str | None) -> str | None:
    """llama.cpp's spelling: ``Q4_K_M``, ``F16``; without what tells how it was made, such as ``UD-``."""
    if text is None:
        return None
    match = _TYPE.fullmatch(text)
    name = (match[1] if match else text).upper()
    return name[:1] + name[2:] if name.startswith("FP") else name


def split_type(name: str) -> tuple[str, str | None]:
    """A name as a user may type it, without the type behind the last colon: ``zephyr-7b-beta:q4_k_m``."""
    base, colon, last = name.rpartition(":")
    if colon and base and is_type(last):
        return base, canonical_type(last)
    return name, None


def type_in_name(stem: str) -> tuple[str, str | None]:
    """A file's stem without the type at its end, and the type; nothing is left of a stem that is a type."""
    match = _TYPE_AT_END.search(stem)
    if match is None:
        return stem, None
    return stem[: match.start()], canonical_type(match[1])


def folded(name: str) -> str:
    """The same for names that differ in case, in which separators they have, or in how accents are put together.

    Empty where a name has nothing but separators, which is no name.
    """
    return _SEPARATORS.sub("-", unicodedata.normalize("NFC", name.casefold())).strip("-")


def shown_name(text: str) -> str:
    """A name for a message, where it may be as long as anyone can type."""
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def without_hub_host(text: str) -> str | None:
    """``OWNER/REPO`` and what follows of ``hf.co/OWNER/REPO``, as Ollama calls what it has from the hub; else None."""
    return next((text[len(host) :] for host in _HUB_HOSTS if text.lower().startswith(host)), None)


def looks_like_path(text: str) -> bool:
    """Whether a name that is no file's can only be meant as a path."""
    if is_hub_name(text) or without_hub_host(text):
        return False
    if text.lower().endswith(".gguf") or text.startswith(("~", ".")) or PurePath(text).is_absolute():
        return True
    *folders, last = text.replace(os.sep, "/").split("/")
    if len(folders) == 1:  # OWNER/REPO may be a model's name
        return not folders[0] or not last
    return bool(folders) and ":" not in last  # Ollama's HOST/NAMESPACE/NAME:TAG
