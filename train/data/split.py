"""Which dialogues are held out: decided by what is in them, never by where they stand.

A dialogue's place is a keyed hash of its first prompt in normal form: the same dialogue is on the same side whatever
the order, and dialogues that begin alike, whose answers would give each other away, are on the same side too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zephyr_local.train.data.dialogue_formats import Dialogue
from zephyr_local.train.data.normal_text import normal_text, stable_hash


def split_place(dialogue: Dialogue, seed: int) -> int:
    """64 bits; a split takes the dialogues of the least."""
    return stable_hash(normal_text(dialogue.user_texts[0]), seed)


def share_limit(share: float) -> int:
    """Places below it are held out."""
    return round(share * 2**64)


def count_limit(places: Sequence[int], count: int) -> int:
    """The limit for the fewest whole groups of one place that make `count` dialogues or more."""
    if count >= len(places):
        return 1 << 64
    return int(np.partition(np.asarray(places, np.uint64), count - 1)[count - 1]) + 1
