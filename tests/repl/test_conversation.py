"""What an answer cost, on one line."""

from __future__ import annotations

from tests.scripted_model import FINISH
from zephyr_local.repl.conversation import timing_line


def test_timing_line_has_counts_and_rates():
    line = timing_line(FINISH)
    assert "prompt 10 tokens, 4 cached" in line
    assert "(12/s)" in line  # 6 new tokens in 0.5 s
    assert "10.0/s" in line  # 2 steps in 0.2 s
