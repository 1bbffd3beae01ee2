"""The form in which texts are compared: what differs only in case, spacing or a character's encoding is the same."""

from __future__ import annotations

import hashlib
import re
import unicodedata

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_SEED_KEY_BYTES = 16


def normal_text(text: str) -> str:
    """Unicode NFKC, case folded, each run of white space one space, none at the ends."""
    folded = text.casefold() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    if not folded.isascii():
        folded = unicodedata.normalize("NFKC", folded)  # folding may leave what is not composed
    return " ".join(folded.split())


def normal_words(text: str) -> list[str]:
    """The words of the normal form, without punctuation; of scripts without spaces, what stands between punctuation."""
    return _WORD.findall(normal_text(text).replace("’", "'"))


def stable_hash(text: str, seed: int = 0) -> int:
    """64 bits that are the same in every process and on every machine, another function for each seed (BLAKE2b)."""
    key = (seed % (1 << 8 * _SEED_KEY_BYTES)).to_bytes(_SEED_KEY_BYTES, "little")
    return int.from_bytes(
        hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8, key=key).digest(), "little"
    )
