"""Kills and cancels at random moments, and what must hold after each: the tests do some, benchmarks/engine.py hundreds.

The answers are long and at temperature 0, so that what a disturbed engine says can be compared with a fresh one's.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from zephyr_local import EngineCrashed, EngineSettings, Message, Sampling, Zephyr
from zephyr_local.chat_types import Finish
from zephyr_local.engine import protocol

QUESTION = (Message("user", "What is the capital of France?"),)
ANSWER = "The capital of France is Paris."
SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT) if os.name == "posix" else ()

# float32 in the cache: whatever a prompt was cut into, and whatever was cached of it, the logits agree to about 1e-5.
# One thread: several wait for each other, and take many times as long where another process wants the cores.
SETTINGS = EngineSettings(n_ctx=1024, kv_type="f32", n_threads=1)
Make = Callable[[], Zephyr]


def greedy(max_tokens: int) -> Sampling:
    """The likeliest tokens, exactly so many of them (2 ends an answer in Llama's and Mistral's vocabularies)."""
    return Sampling(temperature=0, max_tokens=max_tokens, logit_bias={2: float("-inf")})


@dataclass(frozen=True, slots=True)
class Question:
    """One with a long prompt and a long answer, what it costs a fresh engine, and how that one begins it."""

    messages: tuple[Message, ...]
    sampling: Sampling
    finish: Finish
    again: Sampling
    """For a shorter answer, which is asked for after a cancel."""
    begin: str
    """That one."""

    def delay(self, chooser: random.Random, *, in_decode: bool) -> float:
        """A moment of its prefill, seconds after it was asked; or of its decoding, seconds after the first piece."""
        return chooser.uniform(0, self.finish.completion_s if in_decode else self.finish.prompt_s)


def ask_fresh_engines(
    make: Make, n_questions: int = 6, *, repeats: int = 40, answer_tokens: int = 300, again_tokens: int = 24
) -> list[Question]:
    """So many questions, each asked an engine of its own; the context must not hold all of them at once.

    Each begins differently, so that none finds another's prompt in the cache.
    """
    questions = []
    for number in range(n_questions):
        messages = (Message("user", f"{number}: {QUESTION[0].content} " + "What is the capital of Spain? " * repeats),)
        with make() as zephyr:
            finish = zephyr.complete(messages, greedy(answer_tokens)).finish
        with make() as zephyr:
            begin = zephyr.complete(messages, greedy(again_tokens)).text
        questions.append(Question(messages, greedy(answer_tokens), finish, greedy(again_tokens), begin))
    return questions


# --- what a process holds


@dataclass(frozen=True, slots=True)
class Footprint:
    """What this process holds, garbage not counted."""

    descriptors: int
    children: frozenset[int]
    threads: int
    shared_memory: frozenset[str]

    @classmethod
    def now(cls) -> Footprint:
        """Linux only."""
        gc.collect()
        shm = Path("/dev/shm")
        return cls(
            len(os.listdir("/proc/self/fd")),  # noqa: PTH208 — the names alone
            frozenset(_children()),
            threading.active_count(),
            frozenset(path.name for path in shm.iterdir()) if shm.is_dir() else frozenset(),
        )


def _children() -> Iterator[int]:
    """Processes whose parent is this one, those that have ended and were not waited for included."""
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                fields = (path / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == os.getpid():
                yield int(path.name)


def exists(process_id: int) -> bool:
    """Whether there is such a process, an ended one that nobody waited for included."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def no_core_files() -> Iterator[None]:
    """Children that are ended by SIGSEGV or SIGABRT leave no file behind."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


# --- kills


@dataclass(slots=True)
class Kills:
    """What came of killing the engine's process."""

    crashed: int = 0
    """Calls that raised EngineCrashed with the signal's name."""
    answered: int = 0
    """Calls whose answer came to its end and was right, because the signal came too late for it."""
    wrong: list[str] = field(default_factory=list)
    """What should not have been."""
    next_right: int = 0
    """Next calls whose answer was right."""
    restart_s: list[float] = field(default_factory=list)
    """What each next call took, the load included."""
    process_ids: set[int] = field(default_factory=set)


def kill_at_random(zephyr: Zephyr, questions: Sequence[Question], times: int, seed: int = 0) -> Kills:
    """Kill the engine so many times while it answers; ``zephyr`` is the bundled model, isolated."""
    chooser = random.Random(seed)
    kills = Kills()
    for number in range(times):
        question, name = chooser.choice(questions), SIGNALS[number % len(SIGNALS)]
        victim = zephyr.engine_process_id
        assert victim is not None
        kills.process_ids.add(victim)
        in_decode = number // len(SIGNALS) % 2 == 1
        delay_s = question.delay(chooser, in_decode=in_decode)
        timer = threading.Timer(delay_s, os.kill, (victim, name))
        if not in_decode:
            timer.start()
        try:
            texts = []
            for piece in zephyr.stream(question.messages, question.sampling):
                texts.append(piece.text)
                if in_decode and len(texts) == 1:
                    timer.start()
            # Not all of it: a few tokens of the prompt are in the cache, which a fresh engine computes in one batch
            # with the others, and some hundredths between two logits decide what follows an end that is banned.
            if "".join(texts).startswith(question.begin):
                kills.answered += 1
            else:
                kills.wrong.append(f"{number}: an answer does not begin as a fresh engine's does")
        except EngineCrashed as error:
            if error.signal == name.name:
                kills.crashed += 1
            else:
                kills.wrong.append(f"{number}: {name.name} is told as {error}")
        timer.join()
        _wait_until_noticed(zephyr, victim)
        began = time.perf_counter()
        said = zephyr.complete(QUESTION).text
        kills.restart_s.append(time.perf_counter() - began)
        if said == ANSWER:
            kills.next_right += 1
        else:
            kills.wrong.append(f"{number}: the next answer is {said!r}")
    return kills


def _wait_until_noticed(zephyr: Zephyr, victim: int) -> None:
    deadline = time.monotonic() + 20
    while zephyr.engine_process_id == victim:
        assert time.monotonic() < deadline, "the crash is never noticed"
        time.sleep(0.002)


# --- cancels


@dataclass(slots=True)
class Cancels:
    """What came of cancelling answers."""

    in_prefill: list[float] = field(default_factory=list)
    """Seconds from the cancel to the answer's end, for those that had not said anything."""
    in_decode: list[float] = field(default_factory=list)
    too_late: int = 0
    """Answers that had ended already."""
    next_right: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def all_s(self) -> list[float]:
        return self.in_prefill + self.in_decode


def cancel_at_random(zephyr: Zephyr, questions: Sequence[Question], times: int, seed: int = 0) -> Cancels:
    """Cancel so many answers, then ask each of these questions again: of what was computed, nothing may be wrong."""
    chooser = random.Random(seed)
    cancels = Cancels()
    for number in range(times):
        question = questions[number % len(questions)]
        in_decode = number // len(questions) % 2 == 1
        delay_s = question.delay(chooser, in_decode=in_decode)
        finish, took_s = cancel_after(zephyr, question, delay_s, in_decode=in_decode)
        if finish.reason != "cancelled":
            cancels.too_late += 1
        else:
            (cancels.in_decode if finish.completion_tokens else cancels.in_prefill).append(took_s)
        said = zephyr.complete(question.messages, question.again).text
        if said == question.begin:
            cancels.next_right += 1
        else:
            cancels.wrong.append(f"{number}: after {finish} the next answer is {said!r}, not {question.begin!r}")
    return cancels


def cancel_after(zephyr: Zephyr, question: Question, delay_s: float, *, in_decode: bool) -> tuple[Finish, float]:
    """Ask, and cancel so long after that or after the first text; how the answer ended, how long after the cancel.

    What an iterator's close does, but that this goes on listening: a closed iterator hears no more of its answer.
    """
    client = zephyr._client
    waiter = client.submit(zephyr._generate(question.messages, question.sampling))
    event: protocol.Event | None = None
    while in_decode and not isinstance(event, protocol.TextEvent):
        event = waiter.get()
    time.sleep(delay_s)
    began = time.perf_counter()
    assert waiter.engine is not None
    waiter.engine.send(protocol.Cancel(waiter.id))
    while not isinstance(event := waiter.get(), protocol.Finished):
        pass
    took_s = time.perf_counter() - began
    client.leave(waiter)
    return event.finish, took_s
