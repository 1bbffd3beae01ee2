"""A stage's progress: lines for the terminal, and the record that the card and the plots are made from."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from zephyr_local.train.terminal import duration

_SHOWN: Final = {  # TRL's name → ours, short
    "loss": "loss",
    "eval_loss": "test loss",
    "mean_token_accuracy": "accuracy",
    "rewards/accuracies": "chosen preferred",
    "rewards/margins": "margin",
    "eval_rewards/accuracies": "test chosen preferred",
    "eval_rewards/margins": "test margin",
    "grad_norm": "gradient",
    "learning_rate": "rate",
}
_SMOOTHED_LOGS: Final = 10


class TellProgress(TrainerCallback):
    """Says each log as one line: step, loss, rewards, tokens a second, time left."""

    def __init__(self, stage: str, say: Callable[[str], None]) -> None:
        self._stage, self._say = stage, say
        self._begun_at = 0.0
        self._marks: list[tuple[float, int, float]] = []  # time, step, tokens

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        self._begun_at = time.perf_counter()
        self._marks = [(self._begun_at, state.global_step, 0.0)]

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        shown = [f"{name} {logs[key]:.4g}" for key, name in _SHOWN.items() if isinstance(logs.get(key), (int, float))]
        if "loss" in logs:
            shown += self._speed(state, float(logs.get("num_tokens", 0.0)))
        self._say(f"{self._stage} {state.global_step}/{state.max_steps}  {'  '.join(shown)}")

    def _speed(self, state: TrainerState, tokens: float) -> list[str]:
        now = time.perf_counter()
        self._marks = [*self._marks[-_SMOOTHED_LOGS:], (now, state.global_step, tokens)]
        (since, step, before), steps = self._marks[0], state.global_step - self._marks[0][1]
        if steps <= 0 or now <= since:
            return []
        left = (state.max_steps - state.global_step) * (now - since) / (state.global_step - step)
        rate = [f"{(tokens - before) / (now - since):,.0f} tokens/s"] if tokens > before else []
        return [*rate, f"{duration(left)} left"]
