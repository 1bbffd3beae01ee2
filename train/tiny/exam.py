"""The exam of zephyr-tiny: questions that training never showed in these words, marked against the one right answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import MistralForCausalLM

from zephyr_local.chat_types import Message
from zephyr_local.train.tiny.dialogues import ExamQuestion
from zephyr_local.train.tiny.tokenizer import EOS_ID, ChatVocabulary

Answerer = Callable[[Sequence[Message]], str]
LONGEST_ANSWER = 60  # tokens


@dataclass(frozen=True, slots=True)
class Score:
    """How many answers of a topic were right, word for word."""

    topic: str
    right: int
    asked: int


@dataclass(frozen=True, slots=True)
class Mistake:
    """A question with what was said and what was right."""

    question: str
    said: str
    right: str


def checkpoint_answerer(model: MistralForCausalLM, vocabulary: ChatVocabulary) -> Answerer:
    """Answers of a transformers model, the likeliest token each time."""

    def answer(messages: Sequence[Message]) -> str:
        ids = vocabulary.encode_prompt(messages)
        prompt = torch.tensor([ids])  # (1, n_prompt)
        with torch.inference_mode():
            output = model.generate(  # type: ignore[misc]
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=LONGEST_ANSWER,
                do_sample=False,
                eos_token_id=EOS_ID,
                pad_token_id=EOS_ID,
            )
        said = output[0, len(ids) :].tolist()
        return vocabulary.decode([token for token in said if token != EOS_ID])

    return answer


def is_right(question: ExamQuestion, said: str) -> bool:
    """Word for word; for a question outside the domain any of the honest refusals."""
    if question.topic == "unknown":
        return said.startswith("I am sorry")
    return said == question.answer


def take_exam(questions: Sequence[ExamQuestion], answer: Answerer) -> tuple[list[Score], list[Mistake]]:
    """Scores by topic, and every mistake."""
    right: dict[str, int] = {}
    asked: dict[str, int] = {}
    mistakes: list[Mistake] = []
    for question in questions:
        said = answer(question.messages)
        good = is_right(question, said)
        asked[question.topic] = asked.get(question.topic, 0) + 1
        right[question.topic] = right.get(question.topic, 0) + good
        if not good:
            mistakes.append(Mistake(question.messages[-1].content, said, question.answer))
    return [Score(topic, right[topic], asked[topic]) for topic in asked], mistakes
