"""A small MT-Bench of our own in FastChat's formats, and a judge for it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.stand_in_endpoint import Messages

CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
REFERENCED = ("reasoning", "math", "coding")


def write_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def write_bench(folder: Path) -> list[str | Path]:
    """Questions (two of each category), judge prompts and references; returns the command's arguments for them."""
    questions = [
        {"question_id": 80 + n, "category": CATEGORIES[n // 2], "turns": [f"First of {n}?", f"Second of {n}?"]}
        for n in range(16)
    ]
    questions[1]["turns"] = ["One turn alone?"]
    write_lines(folder / "question.jsonl", questions)
    answer = {"single": "{answer}", "pair": "{answer_a} ~ {answer_b}"}
    answers = {"single": "{answer_1} / {answer_2}", "pair": "{answer_a_1} / {answer_a_2} ~ {answer_b_1} / {answer_b_2}"}
    prompts = []
    for kind, system, form in (("single", "Rate it.", "[[rating]]"), ("pair", "Compare them.", "[[A]]")):
        for math in (False, True):
            name = f"{kind}-math-v1" if math else f"{kind}-v1" if kind == "single" else "pair-v2"
            first = f"{{{{judge}}}} {'({ref_answer_1}) ' if math else ''}{{question}}: {answer[kind]}"
            both = (
                f"{'({ref_answer_1}, {ref_answer_2}) ' if math else ''}{{question_1}} {{question_2}}: {answers[kind]}"
            )
            shared = {"type": kind, "system_prompt": system, "output_format": form}
            prompts.append({"name": name, "prompt_template": first, **shared})
            prompts.append({"name": f"{name}-multi-turn", "prompt_template": both, **shared})
    write_lines(folder / "judge_prompts.jsonl", prompts)
    references = [
        {"question_id": q["question_id"], "choices": [{"index": 0, "turns": ["REF 1", "REF 2"]}]}
        for q in questions
        if q["category"] in REFERENCED
    ]
    write_lines(folder / "reference.jsonl", references)
    return [
        "--questions", folder / "question.jsonl", "--judge-prompts", folder / "judge_prompts.jsonl", "--references",
        folder / "reference.jsonl",
    ]  # fmt: skip


def write_model_answers(path: Path, model: str) -> Path:
    """Ready answers to all questions."""
    values = [
        {
            "question_id": 80 + n,
            "model_id": model,
            "choices": [{"index": 0, "turns": [f"{model} {n} a", f"{model} {n} b {{x}}"]}],
        }
        for n in range(16)
    ]
    return write_lines(path, values)


def drawn(messages: Messages) -> str:
    """A judge whose verdict hangs on the text alone; as a model, it says something that does too."""
    number = zlib.crc32(messages[-1]["content"].encode())
    system = messages[0]["content"]
    if system == "Rate it.":
        return f"Good. Rating: [[{1 + number % 10}]]" if number % 5 else f"[[{1 + number % 10}.5]] is mine"
    if system == "Compare them.":
        return ["[[A]]", "[[B]]", "[[C]]"][number % 3]
    return f"Reply {number}"
