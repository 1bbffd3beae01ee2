"""The keys that say what a file was made from, and by what: ours, which llama.cpp's converter does not write."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import zephyr_local
from zephyr_local.gguf_split import SOURCE_SHA256
from zephyr_local.quantize.gguf_header import MetadataValue, text

PREFIX = "zephyr_local."
"""What all keys begin with that llama.cpp does not have; docs/design/conversion.md lists them."""
SEARCH_KEY = f"{PREFIX}search"
"""How scales were searched, where not as ggml does."""
_UNKNOWN_SHA256 = "0" * 64


@dataclass(frozen=True, slots=True)
class Provenance:
    """The source's files and their SHA-256, which is zeros of the same length until they have been read."""

    names: tuple[str, ...]
    digests: tuple[str, ...]

    @classmethod
    def unknown(cls, names: Sequence[str]) -> Provenance:
        """What stands in the header while the files are being read."""
        return cls(tuple(names), (_UNKNOWN_SHA256,) * len(names))

    @property
    def manifest(self) -> str:
        """One line a file, as sha256sum writes and checks it."""
        return "".join(_line(name, digest) for name, digest in zip(self.names, self.digests, strict=True))

    @property
    def sha256(self) -> str:
        """That of the one file, or of the manifest where there are several."""
        if len(self.digests) == 1:
            return self.digests[0]
        if _UNKNOWN_SHA256 in self.digests:
            return _UNKNOWN_SHA256
        return hashlib.sha256(self.manifest.encode()).hexdigest()

    def keys(self) -> dict[str, MetadataValue]:
        """Those of a file, or of the first of several parts."""
        return self.part_keys() | {f"{PREFIX}source.manifest": text(self.manifest)}

    def part_keys(self) -> dict[str, MetadataValue]:
        """Those of every part: they name the run that it belongs to."""
        return {
            f"{PREFIX}version": text(zephyr_local.__version__),
            SOURCE_SHA256: text(self.sha256),
        }


def _line(name: str, digest: str) -> str:
    """A line that begins with a backslash has escapes in its name, as sha256sum's.

    What is no UTF-8 in it becomes \\x.., which sha256sum writes as it is and a GGUF cannot hold.
    """
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    escaped = os.fsencode(escaped).decode("utf-8", "backslashreplace")
    mark = "" if escaped == name else "\\"
    return f"{mark}{digest}  {escaped}\n"


def with_provenance(metadata: Mapping[str, MetadataValue], provenance: Provenance) -> dict[str, MetadataValue]:
    """All keys of the file: ours right after `general.architecture`, so that they stand in its first bytes.

    Keys of the same name that the source brought (a GGUF of ours) give way: they told of another file.
    """
    keys = list(metadata)
    ours = provenance.keys()
    merged = {key: metadata[key] for key in keys[:1]} | ours
    merged.update({key: metadata[key] for key in keys[1:] if key not in ours})
    return merged
