"""Finds dialogues that were there before: the same but for case and spacing, or nearly the same.

Near duplicates: the Jaccard similarity of two texts' sets of five-word shingles, estimated by MinHash (Broder
1997, "On the resemblance and containment of documents") with candidates found by banding (Leskovec, Rajaraman, Ullman,
"Mining of Massive Datasets", section 3.4). The first of a group stays, in the order of the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from zephyr_local.train.data.dialogue_formats import Dialogue
from zephyr_local.train.data.normal_text import normal_text, normal_words, stable_hash

Duplicates = Literal["none", "exact", "near"]
DuplicatesBy = Literal["dialogue", "prompt"]

SHINGLE_WORDS: Final = 5
N_HASHES: Final = 128
_MIN_RECALL: Final = 0.99  # of a pair that is as similar as the threshold, by banding alone
_MAX_HOLDERS: Final = 32  # texts of one band that a later one is compared with: texts made from one pattern share bands
_CHUNK_SHINGLES: Final = 512  # times N_HASHES times 8 bytes stays in a core's cache
_MAX_WORDS_KNOWN: Final = 1 << 20
_FIRST_ROWS: Final = 1024

_U64 = NDArray[np.uint64]
_U32 = NDArray[np.uint32]


def comparable_text(dialogue: Dialogue, by: DuplicatesBy) -> str:
    """What two dialogues are compared by: all turns in normal form, or the first of the user's."""
    if by == "prompt":
        return normal_text(dialogue.user_texts[0])
    return "\x1e".join(f"{turn.role}\x1f{normal_text(turn.content)}" for turn in dialogue.turns)


class ExactIndex:
    """Texts that were added, as 128-bit digests: about 100 bytes a text."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def is_new(self, text: str) -> bool:
        """Add a text; False where it is there already."""
        digest = blake2b(text.encode(), digest_size=16).digest()
        if digest in self._seen:
            return False
        self._seen.add(digest)
        return True


class NearIndex:
    """Texts that were added, as MinHash signatures: 1 to 2 KB a text at the default threshold, whatever its length.

    Stable: hashes are BLAKE2b's and arithmetic modulo 2^64, seeded. A candidate is verified by the signatures' share of
    equal values, whose standard error at 0.8 is 0.035.
    """

    def __init__(self, threshold: float, seed: int = 0) -> None:
        self._threshold = threshold
        self._rows_a_band = _rows_a_band(threshold)
        self._n_bands = N_HASHES // self._rows_a_band
        draw = np.random.Generator(np.random.PCG64(seed))
        high = np.iinfo(np.uint64).max
        self._multiply = draw.integers(0, high, N_HASHES, np.uint64, endpoint=True) | np.uint64(1)  # (N_HASHES,)
        self._add = draw.integers(0, high, N_HASHES, np.uint64, endpoint=True)
        self._seed = seed
        self._words: dict[str, int] = {}
        self._signatures: _U32 = np.empty((_FIRST_ROWS, N_HASHES), np.uint32)
        self._n_texts = 0
        self._table = _BandTable()

    def is_new(self, text: str) -> bool:
        """Add a text; False where one that is as similar as the threshold is there already (it is then not added)."""
        signature = self.signature(text)
        bands = self._bands(signature)
        candidates = self._table.find(bands)
        if len(candidates):
            equal = (self._signatures[candidates] == signature).mean(axis=1)
            if bool((equal >= self._threshold).any()):
                return False
        if self._n_texts == len(self._signatures):
            grown = np.empty((2 * self._n_texts, N_HASHES), np.uint32)
            grown[: self._n_texts] = self._signatures
            self._signatures = grown
        self._signatures[self._n_texts] = signature
        self._table.add(bands, self._n_texts)
        self._n_texts += 1
        return True

    def signature(self, text: str) -> _U32:
        """(N_HASHES,): the least of each hash function over the text's shingles."""
        shingles = self._shingles(normal_words(text))
        least = np.full(N_HASHES, np.iinfo(np.uint64).max, np.uint64)
        for start in range(0, len(shingles), _CHUNK_SHINGLES):
            chunk = shingles[start : start + _CHUNK_SHINGLES]
            # Multiply-shift: of a product modulo 2^64 the upper bits are the random ones (Dietzfelbinger et al. 1997).
            hashed = self._multiply[:, None] * chunk[None, :] + self._add[:, None]  # (N_HASHES, chunk)
            np.minimum(least, hashed.min(axis=1), out=least)
        return (least >> np.uint64(32)).astype(np.uint32)

    def _shingles(self, words: Sequence[str]) -> _U64:
        """(n,): a hash of each run of five words; of a shorter text, one of the whole."""
        hashes = np.fromiter(map(self._word_hash, words), np.uint64, len(words))
        n_words = min(SHINGLE_WORDS, len(words))
        mixed = np.zeros(max(len(words) - n_words + 1, 1), np.uint64)
        for offset in range(n_words):
            mixed = _mix(mixed + hashes[offset : offset + len(mixed)])
        return np.unique(mixed)

    def _word_hash(self, word: str) -> int:
        known = self._words.get(word)
        if known is None:
            if len(self._words) >= _MAX_WORDS_KNOWN:
                self._words.clear()  # it only saves time
            known = self._words[word] = stable_hash(word, self._seed)
        return known

    def _bands(self, signature: _U32) -> _U64:
        """(n_bands,): a hash of each band's values, another for each band."""
        used = signature[: self._n_bands * self._rows_a_band].reshape(self._n_bands, self._rows_a_band)
        mixed = np.arange(1, self._n_bands + 1, dtype=np.uint64)
        for row in range(self._rows_a_band):
            mixed = _mix(mixed + used[:, row])
        return mixed


class _BandTable:
    """Band → rows of texts: open addressing in two arrays, 12 bytes a place, at most half of them taken.

    A dictionary would hold 21 bands of a text in 2 KB.
    """

    def __init__(self) -> None:
        self._n_taken = 0
        self._keys: _U64 = np.zeros(1 << 15, np.uint64)  # 0: free
        self._rows: _U32 = np.zeros(1 << 15, np.uint32)

    def find(self, keys: _U64) -> NDArray[np.intp]:
        """The rows that share one of the bands, least first: of each band no more than _MAX_HOLDERS."""
        found: list[_U32] = []
        keys, places = self._start(keys)
        while len(keys):
            held = self._keys[places]
            found.append(self._rows[places[held == keys]])
            going_on = held != 0
            keys, places = keys[going_on], (places[going_on] + 1) & (len(self._keys) - 1)
        return np.unique(np.concatenate(found)).astype(np.intp) if found else np.empty(0, np.intp)

    def add(self, keys: _U64, row: int) -> None:
        """Enter a row under each of its bands that is not full."""
        if 2 * (self._n_taken + len(keys)) > len(self._keys):
            self._grow()
        keys, places = self._start(keys)
        for key, place in zip(keys.tolist(), places.tolist(), strict=True):
            self._enter(key, place, row)

    def _enter(self, key: int, place: int, row: int) -> None:
        n_holders = 0
        while held := int(self._keys[place]):
            n_holders += held == key
            if n_holders >= _MAX_HOLDERS:
                return
            place = (place + 1) & (len(self._keys) - 1)
        self._keys[place] = key
        self._rows[place] = row
        self._n_taken += 1

    def _start(self, keys: _U64) -> tuple[_U64, NDArray[np.intp]]:
        keys = np.maximum(keys, np.uint64(1))
        return keys, (keys & np.uint64(len(self._keys) - 1)).astype(np.intp)

    def _grow(self) -> None:
        taken = self._keys != 0
        keys, rows = self._keys[taken], self._rows[taken]
        order = np.argsort(rows, kind="stable")
        keys, rows = keys[order], rows[order]
        size = 2 * len(self._keys)
        self._keys, self._rows = np.zeros(size, np.uint64), np.zeros(size, np.uint32)
        _, places = self._start(keys)
        while len(keys):
            free = self._keys[places] == 0
            _, first = np.unique(places, return_index=True)
            wins = np.zeros(len(keys), np.bool_)
            wins[first] = True
            wins &= free
            self._keys[places[wins]] = keys[wins]
            self._rows[places[wins]] = rows[wins]
            left = ~wins
            moved = (places[left] + ~free[left]) & (size - 1)
            keys, rows, places = keys[left], rows[left], moved


def _rows_a_band(threshold: float) -> int:
    """The most rows, and so the fewest false candidates, with which a pair at the threshold is still found."""
    rows = 1
    while 1 - (1 - threshold ** (rows + 1)) ** (N_HASHES // (rows + 1)) >= _MIN_RECALL:
        rows += 1
        if rows == N_HASHES:
            break
    return rows


def _mix(values: _U64) -> _U64:
    """A bijection of 64 bits in which each bit of the input changes half of the output's (SplitMix64's finaliser)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: _U64 = values ^ (values >> np.uint64(31))
    return mixed
