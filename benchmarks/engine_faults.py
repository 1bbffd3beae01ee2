"""Measures 4, 6 and 7 of benchmarks/engine.py: what a chat computes again, and what kills and cancels leave."""

from __future__ import annotations

import faulthandler
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.engine_bench import Bench, Line, middle
from tests.engine.stress import (
    SETTINGS,
    Cancels,
    Footprint,
    Make,
    Question,
    ask_fresh_engines,
    cancel_at_random,
    exists,
    kill_at_random,
    no_core_files,
)
from tests.gguf_builder import tiny_model
from zephyr_local import EngineSettings, Sampling, Zephyr
from zephyr_local.chat_types import Finish

HANG_S = 900  # a measure that takes longer hangs: say where, and end
TURNS = 10
CANCELS_OF_THE_MODEL = 12
QUESTIONS = (
    "What is the capital of France?",
    "And of Spain?",
    "What color is the sky?",
    "How many days has a week?",
    "Is the sun hot?",
)


# --- 4


def chat(bench: Bench) -> list[Line]:
    """What each turn of a chat prefills: no more than what is new in it."""
    lines = []
    settings = EngineSettings(n_threads=bench.threads)
    for name, path, sampling in (
        ("zephyr-tiny", None, None),
        (bench.model.name, bench.model, Sampling(temperature=0, max_tokens=16)),
    ):
        with Zephyr(path, settings, template="zephyr") as zephyr:
            finishes = _turns(zephyr, sampling)
        new = [finishes[0].prompt_tokens, *(_new(*pair) for pair in itertools.pairwise(finishes))]
        prefilled = [finish.prompt_tokens - finish.cached_tokens for finish in finishes]
        print(f"  {name}: new tokens of each turn {new}, prefilled {prefilled}", flush=True)
        what = f"turn {TURNS} of {finishes[-1].prompt_tokens} tokens, {name}"
        lines.append(Line(what, f"{prefilled[-1]} prefilled", aim=f"{new[-1]} new", met=prefilled == new))
    return lines


def _turns(zephyr: Zephyr, sampling: Sampling | None) -> list[Finish]:
    talk = zephyr.chat(sampling=sampling)
    return [talk.ask(QUESTIONS[number % len(QUESTIONS)]).finish for number in range(TURNS)]


def _new(before: Finish, after: Finish) -> int:
    # No decode has seen an answer's last token: it was sampled, and the answer was over.
    return after.prompt_tokens - before.prompt_tokens - (before.completion_tokens - 1)


# --- 6


def kills(bench: Bench) -> list[Line]:
    """The engine's process ended by signals at random moments of its answers."""
    faulthandler.dump_traceback_later(HANG_S, exit=True)
    make: Make = lambda: Zephyr(settings=SETTINGS)  # noqa: E731
    questions = ask_fresh_engines(make)
    before = Footprint.now()
    with no_core_files(), make() as zephyr:
        zephyr.complete(questions[0].messages)
        open_before = Footprint.now()
        found = kill_at_random(zephyr, questions, bench.times)
        open_after = Footprint.now()
    after = Footprint.now()
    faulthandler.cancel_dump_traceback_later()
    _print_wrong(found.wrong)
    print(f"  {found.crashed} calls raised EngineCrashed, {found.answered} answers were whole and right before that")
    print(f"  the next answer after {middle(found.restart_s):.2f} s, at worst {max(found.restart_s):.2f} s", flush=True)
    told = found.crashed + found.answered
    orphans = sum(map(exists, found.process_ids)) + len(after.children - before.children)
    descriptors = max(open_after.descriptors - open_before.descriptors, after.descriptors - before.descriptors)
    threads = max(open_after.threads - open_before.threads, after.threads - before.threads)
    shared = len(after.shared_memory - before.shared_memory)
    times = bench.times
    return [
        Line("kills told, or the answer right", f"{told} of {times}", aim=f"{times}", met=told == times),
        Line("  next answer right", f"{found.next_right} of {times}", aim=f"{times}", met=found.next_right == times),
        _none_left("  orphans", orphans),
        _none_left("  descriptors, threads leaked", descriptors, threads),
        _none_left("  entries of /dev/shm", shared),
    ]


def _none_left(what: str, *counts: int) -> Line:
    return Line(what, ", ".join(map(str, counts)), aim="0", met=all(count <= 0 for count in counts))


def _print_wrong(wrong: Sequence[str]) -> None:
    for line in wrong:
        print(f"  WRONG {line}", flush=True)


# --- 7


def cancels(bench: Bench) -> list[Line]:
    """Answers cancelled at random moments of prefill and decoding; then the same question asked again.

    Of zephyr-tiny and of a model with float32 weights the next answer must be a fresh engine's, token for token. The
    given model computes with quantized activations, which turn the float differences of another batch into large ones:
    of random weights, what it says differs between two answers that nobody cancelled. Its first tokens are counted.
    """
    tiny: Make = lambda: Zephyr(settings=SETTINGS)  # noqa: E731
    here: Make = lambda: Zephyr(settings=SETTINGS, isolated=False)  # noqa: E731
    settings = EngineSettings(n_ctx=SETTINGS.n_ctx, n_threads=bench.threads, kv_type="f32")
    given: Make = lambda: Zephyr(bench.model, settings, template="zephyr")  # noqa: E731
    lines = [
        *_cancels(tiny, "zephyr-tiny, isolated", bench.times, ask_fresh_engines(tiny)),
        *_cancels(here, "zephyr-tiny, in-process", bench.times, ask_fresh_engines(here)),
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = tiny_model(n_embd=512, n_head=8, n_head_kv=8, n_block=8, n_ff=1408, n_ctx_train=8192).write(
            Path(folder) / "float32.gguf"
        )
        float32: Make = lambda: Zephyr(path, SETTINGS, template="zephyr")  # noqa: E731
        questions = ask_fresh_engines(float32, repeats=10, answer_tokens=100)
        lines += _cancels(float32, "25 million float32 weights", bench.times, questions)
    questions = ask_fresh_engines(given, 3, answer_tokens=32, again_tokens=1)
    times = min(bench.times, CANCELS_OF_THE_MODEL)
    return lines + _cancels(given, bench.model.name, times, questions, aim_s=1.0, exact=False)


def _cancels(
    make: Make, name: str, times: int, questions: Sequence[Question], *, aim_s: float = 0.2, exact: bool = True
) -> list[Line]:
    faulthandler.dump_traceback_later(HANG_S, exit=True)
    with make() as zephyr:
        found = cancel_at_random(zephyr, questions, times)
    faulthandler.cancel_dump_traceback_later()
    _print_wrong(found.wrong)
    print(f"  {name}: {_described(found)}", flush=True)
    worst, right = max(found.all_s, default=0.0), f"{found.next_right} of {times}"
    what = "  next answer as a fresh engine's" if exact else "  first token as a fresh engine's"
    return [
        Line(f"cancel to idle, median, {name}", f"{middle(found.all_s or [0.0]) * 1000:.1f} ms"),
        Line("  at worst", f"{worst * 1000:.1f} ms", aim=f"<= {aim_s * 1000:.0f} ms", met=worst <= aim_s),
        Line(what, right, aim=str(times) if exact else "", met=found.next_right == times if exact else None),
    ]


def _described(found: Cancels) -> str:
    parts = [
        f"{len(times)} in {where} (median {middle(times) * 1000:.1f} ms, worst {max(times) * 1000:.1f} ms)"
        for where, times in (("prefill", found.in_prefill), ("decoding", found.in_decode))
        if times
    ]
    return ", ".join([*parts, f"{found.too_late} too late"])
