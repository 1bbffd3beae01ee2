"""The exam of zephyr-tiny: questions that training never showed in these words, marked against the one right answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zephyr_local.chat_types import Message
from zephyr_local.train.tiny.dialogues import ExamQuestion, exam

LONGEST_ANSWER_TOKENS = 60
REFUSAL_OPENING = "I am sorry, "
"""All three refusals begin so, and no other answer does."""


@dataclass(frozen=True, slots=True)
class Score:
    """How many answers of a topic were right, word for word."""

    topic: str
    right: int
    asked: int


@dataclass(frozen=True, slots=True)
class Mistake:
    """A question with what was said and what was right."""

    topic: str
    question: str
    said: str
    right: str

    @property
    def confident(self) -> bool:
        """Whether it was said as if it were so: the worst that a model can do."""
        return not is_refusal(self.said)


@dataclass(frozen=True, slots=True)
class ExamResult:
    """What an exam showed."""

    scores: tuple[Score, ...]
    mistakes: tuple[Mistake, ...]

    @property
    def asked(self) -> int:
        return sum(score.asked for score in self.scores)

    @property
    def right(self) -> int:
        return sum(score.right for score in self.scores)

    @property
    def refusals_right(self) -> int:
        """Questions that nobody could answer and that were turned down."""
        return sum(score.right for score in self.scores if score.topic == "unknown")

    @property
    def wrong_and_confident(self) -> int:
        return sum(mistake.confident for mistake in self.mistakes)

    @property
    def needless_refusals(self) -> int:
        """Questions turned down that the model had been taught the answer to."""
        return sum(not mistake.confident for mistake in self.mistakes)

    def as_json(self) -> dict[str, Any]:
        """JSON values, the same for the same answers."""
        return {
            "asked": self.asked,
            "right": self.right,
            "refusals_right": self.refusals_right,
            "wrong_and_confident": self.wrong_and_confident,
            "needless_refusals": self.needless_refusals,
            "by_topic": {score.topic: {"right": score.right, "asked": score.asked} for score in self.scores},
            "mistakes": [
                {"topic": m.topic, "question": m.question, "said": m.said, "right": m.right} for m in self.mistakes
            ],
        }


def is_refusal(said: str) -> bool:
    """Whether an answer is one of the three that turn a question down."""
    return said.startswith(REFUSAL_OPENING)


def is_right(question: ExamQuestion, said: str) -> bool:
    """Word for word; for a question outside the domain any of the honest refusals."""
    if question.topic == "unknown":
        return is_refusal(said)
    return said == question.answer


def mark(questions: Sequence[ExamQuestion], answers: Sequence[str]) -> ExamResult:
    """The result of an exam that has been taken."""
    right: dict[str, int] = {}
    asked: dict[str, int] = {}
    mistakes: list[Mistake] = []
    for question, said in zip(questions, answers, strict=True):
        good = is_right(question, said)
        asked[question.topic] = asked.get(question.topic, 0) + 1
        right[question.topic] = right.get(question.topic, 0) + good
        if not good:
            mistakes.append(Mistake(question.topic, question.messages[-1].content, said, question.answer))
    return ExamResult(tuple(Score(topic, right[topic], asked[topic]) for topic in asked), tuple(mistakes))


def take_exam(model: Path, questions: Sequence[ExamQuestion] | None = None) -> ExamResult:
    """Have a checkpoint's folder or a GGUF file take the exam, or answer the given questions, at temperature 0.

    Raises CheckpointError or ModelFileError kinds for what is neither.
    """
    asked = exam() if questions is None else questions
    return mark(asked, answers_of(model, [question.messages for question in asked]))


def answers_of(model: Path, chats: Sequence[Sequence[Message]]) -> list[str]:
    """A checkpoint's answers, many at once; a GGUF's through the runtime, as it is served."""
    if model.is_dir():
        from zephyr_local.train.tiny.sampling import SampleSettings, TinyCheckpoint, sample

        checkpoint = TinyCheckpoint.load(model)
        prompts = [checkpoint.vocabulary.encode_prompt(messages) for messages in chats]
        return sample(checkpoint, prompts, SampleSettings(max_tokens=LONGEST_ANSWER_TOKENS))
    from zephyr_local.api import Zephyr
    from zephyr_local.settings import Sampling

    greedy = Sampling(temperature=0, max_tokens=LONGEST_ANSWER_TOKENS)
    with Zephyr(model) as zephyr:
        return [zephyr.complete(messages, greedy).text for messages in chats]
