"""AlpacaEval run: a model answers instructions, a judge says which of its answer and a reference's is better."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from zephyr_local.chat_types import Message
from zephyr_local.errors import InvalidInputError
from zephyr_local.train.asking.asker import Refused
from zephyr_local.train.asking.models import ModelSpec
from zephyr_local.train.asking.request import UnreadableError
from zephyr_local.train.asking.session import Questions, Session
from zephyr_local.train.asking.template import JudgeTemplate, without_thought
from zephyr_local.train.data.normal_text import stable_hash
from zephyr_local.train.data.records import read_records, write_whole
from zephyr_local.train.evaluate.model_names import file_name, require_different

TEMPLATE: Final = Path(__file__).parent / "templates" / "alpaca_eval.toml"
TEMPLATE_VALUES: Final[Mapping[str, str]] = {
    "instruction": "<an instruction>",
    "output_1": "<one output>",
    "output_2": "<another>",
}
ANSWER_TEMPERATURE: Final = 0.7
ANSWER_TOKENS: Final = 2048
JUDGMENT_TOKENS: Final = 512

REFERENCE_FIRST: Final = 1.0
MODEL_FIRST: Final = 2.0
TIE: Final = 1.5
_BETTER: Final = re.compile(r"[ \t*_#>`-]*better[ *_]*:[ *_\[(\"]*(?:answer )?(1|2|tie)[ *_\])\".]*\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Instruction:
    """One of the evaluation set."""

    text: str
    dataset: str = ""


@dataclass(frozen=True, slots=True)
class Outputs:
    """A model's outputs."""

    generator: str
    by_instruction: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class AlpacaEval:
    """What a run is given."""

    instructions: Sequence[Instruction]
    reference: Outputs
    judge: ModelSpec
    template: JudgeTemplate
    both_orders: bool = False
    """Ask twice, each answer first once; where the two disagree it is a tie."""
    seed: int = 0
    """Of which answer stands first, instruction by instruction, where each is asked once."""

    def __post_init__(self) -> None:
        self.judge.require_judge()


def read_instructions(path: Path) -> list[Instruction]:
    """The evaluation set, or a file of outputs. Raises InvalidInputError, naming the record."""
    found = {}
    for record in read_records(path):
        text, dataset = record.value.get("instruction"), record.value.get("dataset")
        if not isinstance(text, str) or not text.strip():
            raise InvalidInputError(f"{record.where} has no instruction", "Give AlpacaEval's set, or outputs")
        found[text] = Instruction(text, dataset if isinstance(dataset, str) else "")
    if not found:
        raise InvalidInputError(f"{path} has no instructions", "Give AlpacaEval's set, or outputs")
    return list(found.values())


def read_outputs(path: Path) -> Outputs:
    """Outputs in AlpacaEval's format. Raises InvalidInputError, naming the record."""
    generator, found = path.stem, {}
    for record in read_records(path):
        instruction, output = record.value.get("instruction"), record.value.get("output")
        if not isinstance(instruction, str) or not isinstance(output, str):
            raise InvalidInputError(f"{record.where} has no instruction and output", "Give AlpacaEval's outputs")
        found[instruction] = output
        name = record.value.get("generator")
        generator = name if isinstance(name, str) and name else generator
    return Outputs(generator, found)


def require_outputs(instructions: Sequence[Instruction], outputs: Outputs) -> None:
    """Raises InvalidInputError where an instruction has no output."""
    missing = [one.text for one in instructions if one.text not in outputs.by_instruction]
    if missing:
        raise InvalidInputError(
            f"{outputs.generator} has no output for {len(missing):,} of {len(instructions):,} instructions, "
            f"such as {missing[0][:60]!r}",
            "Give outputs for all of them, or --instructions with those that there are",
        )


def answer_instructions(
    session: Session, instructions: Sequence[Instruction], specs: Sequence[ModelSpec]
) -> list[Outputs]:
    """The models' outputs, asked for or read, each written to ``NAME/model_outputs.json`` in the session's folder."""
    found = {index: read_outputs(Path(spec.file)) for index, spec in enumerate(specs) if spec.kind == "file"}
    for ready in found.values():
        require_outputs(instructions, ready)
    require_different([found[i].generator if i in found else spec.name for i, spec in enumerate(specs)])
    asked = {index: spec for index, spec in enumerate(specs) if index not in found}
    outcomes = session.ask_each([_answers(spec, instructions) for spec in asked.values()], str)
    for (index, spec), outcome in zip(asked.items(), outcomes, strict=True):
        texts = ["" if isinstance(one, Refused) else one for one in outcome]
        found[index] = Outputs(spec.name, {i.text: text for i, text in zip(instructions, texts, strict=True)})
    results = [found[index] for index in range(len(specs))]
    for outputs in results:
        values = [
            {
                "dataset": one.dataset,
                "instruction": one.text,
                "output": outputs.by_instruction[one.text],
                "generator": outputs.generator,
            }
            for one in instructions
        ]
        _write_json(session.folder / file_name(outputs.generator) / "model_outputs.json", values)
    return results


def _answers(spec: ModelSpec, instructions: Sequence[Instruction]) -> Questions:
    requests = [
        spec.request((Message("user", one.text),), temperature=ANSWER_TEMPERATURE, max_tokens=ANSWER_TOKENS)
        for one in instructions
    ]
    return Questions(spec, requests, f"{spec.name} answers")


def annotate(session: Session, evaluation: AlpacaEval, outputs: Outputs) -> Path:
    """Write the judge's preference for each instruction to ``NAME/annotations.json``, and return its path.

    In AlpacaEval's format: 1 for the reference's output, 2 for the model's, 1.5 for a tie, null where the judge said
    nothing that could be read.
    """
    instructions, reference = evaluation.instructions, evaluation.reference
    require_outputs(instructions, reference)
    judge = evaluation.judge
    places: list[tuple[int, bool]] = []  # which instruction, and whether the model's output stands first
    requests = []
    for index, one in enumerate(instructions):
        pair = (reference.by_instruction[one.text], outputs.by_instruction[one.text])
        if pair[0] == pair[1]:
            continue  # a tie, whoever is asked
        first = bool(stable_hash(f"order\0{one.text}", evaluation.seed) & 1)
        for model_first in (False, True) if evaluation.both_orders else (first,):
            shown = pair[::-1] if model_first else pair
            values = {"instruction": one.text, "output_1": shown[0], "output_2": shown[1]}
            asked = evaluation.template.messages(values)
            requests.append(judge.request(asked, temperature=0.0, max_tokens=JUDGMENT_TOKENS))
            places.append((index, model_first))
    outcomes = session.ask(
        Questions(judge, requests, f"{judge.name} judges {outputs.generator}"), lambda text: (text, read_better(text))
    )
    verdicts: dict[int, list[float | None]] = {}
    judgments: dict[int, list[str]] = {}
    for (index, model_first), outcome in zip(places, outcomes, strict=True):
        refused = isinstance(outcome, Refused)
        text, better = (outcome.text, None) if isinstance(outcome, Refused) else outcome
        verdicts.setdefault(index, []).append(None if refused else _preference(better, model_first))
        judgments.setdefault(index, []).append(text)
    annotations = [
        {
            "instruction": one.text,
            "output_1": reference.by_instruction[one.text],
            "generator_1": reference.generator,
            "dataset": one.dataset,
            "output_2": outputs.by_instruction[one.text],
            "generator_2": outputs.generator,
            "annotator": judge.name,
            "preference": agreed(verdicts.get(index, [TIE])),
            "raw_completion": "\n\n".join(judgments.get(index, [])),
        }
        for index, one in enumerate(instructions)
    ]
    target = session.folder / file_name(outputs.generator) / "annotations.json"
    _write_json(target, annotations)
    return target


def read_better(judgment: str) -> str:
    """``1``, ``2`` or ``tie``. Raises UnreadableError where a judgment says none of them, or two."""
    found = {match[1].lower() for line in without_thought(judgment).splitlines() if (match := _BETTER.match(line))}
    if not found:
        raise UnreadableError('no line "Better: …" in the judgment')
    if len(found) > 1:
        raise UnreadableError('two different lines "Better: …" in the judgment')
    return found.pop()


def _preference(better: str | None, model_first: bool) -> float:
    if better == "tie":
        return TIE
    return MODEL_FIRST if (better == "1") == model_first else REFERENCE_FIRST


def agreed(verdicts: Sequence[float | None]) -> float | None:
    """One verdict of one, or of both orders: where these disagree, a tie; without either, none."""
    if any(verdict is None for verdict in verdicts):
        return None
    return verdicts[0] if len(set(verdicts)) == 1 else TIE


def _write_json(path: Path, values: Sequence[Mapping[str, Any]]) -> None:
    write_whole(path, json.dumps(values, indent=2, ensure_ascii=False).encode(errors="replace") + b"\n")
