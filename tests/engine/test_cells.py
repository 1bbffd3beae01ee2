"""The ledger of cells against one that counts anew each time, and common prefixes against a loop."""

from __future__ import annotations

import random

import pytest

from zephyr_local.engine.cells import CellLedger, Sequence, common_prefix


def filled(ledger: CellLedger, sequence_id: int, tokens: list[int]) -> Sequence:
    sequence = Sequence(sequence_id)
    ledger.append(sequence, tokens)
    return sequence


def test_sharing_costs_nothing_and_the_last_holder_frees() -> None:
    ledger = CellLedger(100)
    one = filled(ledger, 0, list(range(60)))
    assert ledger.n_free == 40
    other = Sequence(1)
    ledger.share(one, other, 50)
    assert (other.tokens, other.cells) == (one.tokens[:50], one.cells[:50])
    assert ledger.n_free == 40
    ledger.append(other, [7, 8])
    assert ledger.n_free == 38
    assert one.tokens == list(range(60))
    ledger.truncate(one, 30)
    assert ledger.n_free == 48  # the ten that it had for itself
    ledger.truncate(one, 0)
    assert ledger.n_free == 48
    ledger.truncate(other, 40)
    assert ledger.n_free == 60
    ledger.truncate(other, 0)
    assert ledger.n_free == ledger.capacity == 100


def test_how_many_would_be_free_without_the_others() -> None:
    ledger = CellLedger(100)
    one, other = filled(ledger, 0, list(range(60))), Sequence(1)
    ledger.share(one, other, 50)
    ledger.append(other, [1, 2, 3])
    assert ledger.n_free_without([]) == 100
    assert ledger.n_free_without([one]) == 40
    assert ledger.n_free_without([other]) == 47
    assert ledger.n_free_without([one, other]) == ledger.n_free == 37


def test_a_full_ledger_gives_no_cell() -> None:
    ledger = CellLedger(3)
    one = filled(ledger, 0, [1, 2, 3])
    with pytest.raises(IndexError):
        ledger.append(one, [4])
    ledger.truncate(one, 1)
    ledger.append(one, [5, 6])
    assert one.tokens == [1, 5, 6]
    assert sorted(one.cells) == [0, 1, 2]


@pytest.mark.parametrize("seed", range(6))
def test_any_sequence_of_operations(seed: int) -> None:
    """Against books that know only each sequence's tokens, each with a mark that is new with each append."""
    dice = random.Random(seed)
    ledger, sequences = CellLedger(200), [Sequence(n) for n in range(8)]
    marks: list[list[int]] = [[] for _ in sequences]
    expected: list[list[int]] = [[] for _ in sequences]
    next_mark = 0
    for _ in range(4000):
        n = dice.randrange(8)
        match dice.choice("aast"):
            case "a":
                tokens = [dice.randrange(10) for _ in range(dice.randrange(min(ledger.n_free, 30) + 1))]
                ledger.append(sequences[n], iter(tokens))
                expected[n] += tokens
                marks[n] += range(next_mark, next_mark + len(tokens))
                next_mark += len(tokens)
            case "s" if not expected[n]:
                source = dice.randrange(8)
                if source != n:
                    length = dice.randrange(len(expected[source]) + 1)
                    ledger.share(sequences[source], sequences[n], length)
                    expected[n], marks[n] = expected[source][:length], marks[source][:length]
            case _:
                length = dice.randrange(len(expected[n]) + 1)
                ledger.truncate(sequences[n], length)
                del expected[n][length:], marks[n][length:]
        assert [sequence.tokens for sequence in sequences] == expected
        assert ledger.n_free == 200 - len({mark for some in marks for mark in some})
        some = dice.sample(range(8), 3)
        held = {mark for index in some for mark in marks[index]}
        assert ledger.n_free_without([sequences[index] for index in some]) == 200 - len(held)
        cells = dict(zip((m for some in marks for m in some), (c for s in sequences for c in s.cells), strict=True))
        assert len(set(cells.values())) == len(cells), "one cell for each mark"
    for sequence in sequences:
        ledger.truncate(sequence, 0)
    assert ledger.n_free == 200


def test_common_prefix_against_a_loop() -> None:
    dice = random.Random(1)
    for _ in range(5000):
        one = [dice.randrange(3) for _ in range(dice.randrange(40))]
        other = one[: dice.randrange(len(one) + 1)] + [dice.randrange(3) for _ in range(dice.randrange(10))]
        expected = 0
        while expected < min(len(one), len(other)) and one[expected] == other[expected]:
            expected += 1
        assert common_prefix(one, other) == common_prefix(other, one) == expected
    assert common_prefix([], [1]) == 0
    assert common_prefix([2], [1]) == 0
