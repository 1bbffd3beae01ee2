"""One sequence of a model, token by token: what tests and benchmarks ask logits of, without the scheduler."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from zephyr_local.engine.context import Segment
from zephyr_local.engine.llama import LlamaModel
from zephyr_local.engine.samplers import Sampler


class Evaluator:
    """Keeps sequence 0 of a loaded model's context."""

    def __init__(self, model: LlamaModel, sequence: int = 0) -> None:
        self.context, self.sequence = model.context, sequence
        self._length = self._index = 0

    def evaluate(self, tokens: Sequence[int]) -> None:
        """Make the sequence exactly ``tokens``, decoded anew in chunks; the last one's logits are ready after it."""
        self.context.truncate(self.sequence, 0)
        self._length = 0
        step = self.context.n_batch
        for start in range(0, len(tokens), step):
            self._decode(tokens[start : start + step])

    def append(self, token: int) -> None:
        self._decode([token])

    def logits(self) -> npt.NDArray[np.float32]:
        return self.context.logits(self._index)

    def sample(self, sampler: Sampler) -> int:
        return self.context.sample(sampler, self._index)

    def _decode(self, tokens: Sequence[int]) -> None:
        (self._index,) = self.context.decode([Segment(self.sequence, self._length, tokens, wants_logits=True)])
        self._length += len(tokens)
