"""Which sequence holds which cells of a unified KV cache: llama.cpp does not tell how many are free."""

from __future__ import annotations

from collections.abc import Iterable


class Sequence:
    """What the cache holds under one sequence id."""

    __slots__ = ("cells", "id", "last_used", "tokens")

    def __init__(self, sequence_id: int) -> None:
        self.id = sequence_id
        self.tokens: list[int] = []
        self.cells: list[int] = []  # one for each token
        self.last_used = 0


class CellLedger:
    """Counts the references to each cell."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._references = [0] * capacity
        self._free = list(range(capacity - 1, -1, -1))

    @property
    def n_free(self) -> int:
        return len(self._free)

    def append(self, sequence: Sequence, tokens: Iterable[int]) -> None:
        """Give ``sequence`` a cell for each of the tokens."""
        for token in tokens:
            cell = self._free.pop()
            self._references[cell] = 1
            sequence.cells.append(cell)
            sequence.tokens.append(token)

    def share(self, source: Sequence, target: Sequence, length: int) -> None:
        """Let the empty ``target`` begin with the first ``length`` cells of ``source``."""
        target.tokens, target.cells = source.tokens[:length], source.cells[:length]
        for cell in target.cells:
            self._references[cell] += 1

    def truncate(self, sequence: Sequence, length: int) -> None:
        """Take back a sequence's cells from ``length`` on."""
        for cell in sequence.cells[length:]:
            self._references[cell] -= 1
            if self._references[cell] == 0:
                self._free.append(cell)
        del sequence.cells[length:], sequence.tokens[length:]

    def n_free_without(self, kept: Iterable[Sequence]) -> int:
        """How many cells would be free if only the sequences in ``kept`` held any."""
        return self.capacity - len({cell for sequence in kept for cell in sequence.cells})


def common_prefix(one: list[int], other: list[int]) -> int:
    """How many tokens two lists have in common from their beginning."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:  # one[:low] is common, one[:high] is not
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low
