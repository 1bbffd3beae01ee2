"""Measures 1 to 3, 5 and 8 of benchmarks/engine.py: how fast, how soon, and how much memory."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.engine_bench import (
    N_CTX,
    ROOT,
    Bench,
    Line,
    at_least,
    at_most,
    by_turns,
    greedy,
    middle,
    run_python,
    run_tool,
    spread,
    user,
)
from zephyr_local import EngineSettings, Message, Zephyr
from zephyr_local.chat_template import ChatTemplate
from zephyr_local.chat_types import Finish

N_TOKENS = 128
N_PARALLEL = 4
IDLE_S = 2.0  # as long as a question takes to type; the engine moves its weights into huge pages meanwhile
SHORT = "Hello"
PARALLEL_WORDS = "What is the capital of France? " * 6
PLAIN_TEMPLATE = "{{ messages[0]['content'] }}"
PLAIN_PROMPT = "The capital of France is"  # with the start token, 6 tokens of Mistral's vocabulary


def _load(bench: Bench) -> Zephyr:
    return Zephyr(bench.model, EngineSettings(n_ctx=N_CTX, n_threads=bench.threads), template="zephyr")


@dataclass(frozen=True, slots=True)
class _Timed:
    """One answer, by the host's clock."""

    first_at: float
    last_at: float
    finish: Finish


def _answer(zephyr: Zephyr, messages: tuple[Message, ...], n_tokens: int) -> _Timed:
    first_at: float | None = None
    for piece in zephyr.stream(messages, greedy(n_tokens)):
        now = time.perf_counter()
        if first_at is None:
            first_at = now
        if piece.finish is not None:
            if piece.finish.completion_tokens != n_tokens:
                raise SystemExit(f"an answer ended after {piece.finish.completion_tokens} of {n_tokens} tokens")
            return _Timed(first_at, now, piece.finish)
    raise AssertionError("an answer ended without a finish")


# --- 1


def decode(bench: Bench) -> list[Line]:
    """One streamed answer, beside llama-bench's tg128."""
    by_finish, by_host, theirs = _decode_rates(bench)
    return [
        at_least("decode, one answer (Finish)", "tok/s", by_finish, theirs, 0.97),
        at_least("decode, one answer (host's clock)", "tok/s", by_host, theirs, 0.97),
    ]


def busy(bench: Bench) -> list[Line]:
    """The same while another process has a core's worth of work."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            by_finish, _, theirs = _decode_rates(bench)
        finally:
            other.kill()
    return [at_least("decode beside a busy process", "tok/s", by_finish, theirs, 1.0)]


def _decode_rates(bench: Bench) -> tuple[list[float], list[float], list[float]]:
    """Tokens a second: ours by the Finish and by the host's clock, and llama-bench's."""
    by_finish: list[float] = []
    by_host: list[float] = []
    theirs: list[float] = []
    command = [bench.tools["llama-bench"], "-m", bench.model, "-t", bench.threads, "-p", 0, "-n", N_TOKENS]

    def us() -> None:
        with _load(bench) as zephyr:  # anew each time, as the peer: where a process's memory lies makes 4 % or so
            _answer(zephyr, user(SHORT), 8)
            time.sleep(IDLE_S)
            answer = _answer(zephyr, user(SHORT), N_TOKENS)
        by_finish.append((N_TOKENS - 1) / answer.finish.completion_s)
        by_host.append((N_TOKENS - 1) / (answer.last_at - answer.first_at))
        print(f"  ours         {by_finish[-1]:7.2f} tokens/s, {by_host[-1]:.2f} by the host's clock", flush=True)

    def peer() -> None:
        theirs.append(json.loads(run_tool([*map(str, command), "-r", "1", "-o", "json"]))[0]["avg_ts"])
        print(f"  llama-bench  {theirs[-1]:7.2f} tokens/s", flush=True)

    by_turns(bench.runs, us, peer)
    print(f"  ours {spread(by_finish)}, llama-bench {spread(theirs)}")
    return by_finish, by_host, theirs


# --- 2


def parallel(bench: Bench) -> list[Line]:
    """Four answers at once, beside llama-batched-bench."""
    ours: list[float] = []
    theirs: list[float] = []
    chats = [user(f"{number} {PARALLEL_WORDS}") for number in range(1, N_PARALLEL + 1)]
    with _load(bench) as zephyr:
        (n_prompt,) = {zephyr.count_tokens(chat) for chat in chats}
    command = [bench.tools["llama-batched-bench"], "-m", bench.model, "-t", bench.threads, "-c", N_CTX]
    command += ["-npp", n_prompt, "-ntg", N_TOKENS, "-npl", N_PARALLEL, "--output-format", "jsonl"]

    def us() -> None:
        with _load(bench) as zephyr:
            for chat in chats:
                zephyr.complete(chat, greedy(1))  # its prompt is in the cache then: what follows is all decoding
            time.sleep(IDLE_S)
            ours.append(_aggregate_rate(zephyr, chats))
        print(f"  ours                 {ours[-1]:7.2f} tokens/s", flush=True)

    def peer() -> None:
        (found,) = (json.loads(line) for line in run_tool(command).splitlines() if line.startswith("{"))
        theirs.append(found["speed_tg"])
        print(f"  llama-batched-bench  {theirs[-1]:7.2f} tokens/s", flush=True)

    by_turns(bench.runs, us, peer)
    print(f"  prompts of {n_prompt} tokens; ours {spread(ours)}, llama-batched-bench {spread(theirs)}")
    return [at_least(f"decode, {N_PARALLEL} answers at once", "tok/s", ours, theirs, 0.9)]


def _aggregate_rate(zephyr: Zephyr, chats: Sequence[tuple[Message, ...]]) -> float:
    """Tokens of all answers a second, from the first one's first token to the last one's last."""
    answers: list[_Timed] = []
    barrier = threading.Barrier(len(chats))

    def ask(chat: tuple[Message, ...]) -> None:
        barrier.wait()
        answers.append(_answer(zephyr, chat, N_TOKENS))

    threads = [threading.Thread(target=ask, args=(chat,)) for chat in chats]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(answers) != len(chats):
        raise SystemExit("an answer failed")
    began = min(answer.last_at - answer.finish.completion_s for answer in answers)
    return len(chats) * (N_TOKENS - 1) / (max(answer.last_at for answer in answers) - began)


# --- 3

_COLD = """
import json, sys
from zephyr_local import EngineSettings, Sampling, Zephyr
path, threads, n_ctx, template, text = sys.argv[1:]
settings = EngineSettings(n_ctx=int(n_ctx), n_threads=int(threads))
with Zephyr(path, settings, template=template) as zephyr:
    for piece in zephyr.stream([{"role": "user", "content": text}], Sampling(temperature=0, max_tokens=1)):
        print("piece", flush=True)
        if piece.finish:
            print(piece.finish.prompt_tokens, flush=True)
"""


def cold(bench: Bench) -> list[Line]:
    """From the start of a process to its first token, the file in the page cache."""
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.jinja"
        plain.write_text(PLAIN_TEMPLATE, encoding="utf-8")
        chat = ChatTemplate.named("zephyr").render(user(SHORT))
        return [
            *_cold(bench, "a plain prompt", str(plain), PLAIN_PROMPT, PLAIN_PROMPT),
            *_cold(bench, "a chat", "zephyr", SHORT, chat),
        ]


def _cold(bench: Bench, what: str, template: str, text: str, rendered: str) -> list[Line]:
    ours: list[float] = []
    times: dict[str, list[float]] = {"as it comes": [], "--no-warmup": []}
    n_tokens = 0

    def us() -> None:
        nonlocal n_tokens
        arguments = [bench.model, bench.threads, N_CTX, template, text]
        took_s, said = _until_first_output([sys.executable, "-c", _COLD, *map(str, arguments)])
        ours.append(took_s)
        n_tokens = int(said.split()[-1])

    def peer(name: str) -> Callable[[], None]:
        def run() -> None:
            command = [bench.tools["llama-completion"], "-m", bench.model, "-t", bench.threads, "-c", N_CTX]
            command += ["-p", rendered, "-n", 1, "--temp", 0, "-no-cnv", "--no-display-prompt"]
            command += [name] if name.startswith("-") else []
            times[name].append(_until_end(list(map(str, command))))

        return run

    us()  # what is read and compiled the first time is not counted
    ours.clear()
    by_turns(bench.runs, us, *(peer(name) for name in times))
    print(f"  {what} of {n_tokens} tokens: ours {spread(ours)} s", flush=True)
    for name, seconds in times.items():
        print(f"    llama-completion {name} {spread(seconds)} s", flush=True)
    return [
        at_most(f"cold, {what} of {n_tokens} tokens; peer {name}", "s", ours, seconds, 1.5)
        for name, seconds in times.items()
    ]


def _until_first_output(command: Sequence[str]) -> tuple[float, str]:
    began = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=ROOT, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        took_s = time.perf_counter() - began
        rest = process.stdout.read()
    if process.returncode != 0:
        raise SystemExit(f"the cold process ended with {process.returncode}")
    return took_s, rest


def _until_end(command: Sequence[str]) -> float:
    began = time.perf_counter()
    run_tool(command)
    return time.perf_counter() - began


# --- 5

_HEAVY = ("numpy", "llama_cpp", "torch", "jinja2")


def imports(bench: Bench) -> list[Line]:
    """`import zephyr_local`, without what the interpreter takes to start."""
    del bench
    bare: list[float] = []
    whole: list[float] = []
    with_class: list[float] = []

    def start(code: str, into: list[float]) -> Callable[[], None]:
        def run() -> None:
            into.append(_until_end([sys.executable, "-c", code]))

        return run

    by_turns(
        20,
        start("pass", bare),
        start("import zephyr_local", whole),
        start("from zephyr_local import Zephyr", with_class),
    )
    took_ms, class_ms = ((middle(times) - middle(bare)) * 1000 for times in (whole, with_class))
    imported = run_python(f"import sys; from zephyr_local import Zephyr; print(*(set({_HEAVY}) & set(sys.modules)))")
    return [
        Line("import zephyr_local", f"{took_ms:.1f} ms", aim="<= 60 ms", met=took_ms <= 60),
        Line("  from zephyr_local import Zephyr", f"{class_ms:.1f} ms"),
        Line("  of " + ", ".join(_HEAVY), imported.strip() or "none", aim="none", met=not imported.strip()),
    ]


# --- 8

_MEMORY = """
import gc, json, sys
from pathlib import Path
from zephyr_local import EngineSettings, Sampling, Zephyr
def resident():
    gc.collect()
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").open() if line.startswith("VmRSS:"))
path, threads, n_ctx, isolated = sys.argv[1:]
resident()
before = resident()
settings = EngineSettings(n_ctx=int(n_ctx), n_threads=int(threads))
zephyr = Zephyr(path, settings, template="zephyr", isolated=isolated == "True")
loaded = resident()
zephyr.complete([{"role": "user", "content": "Hello"}], Sampling(temperature=0, max_tokens=16))
answered = resident()
zephyr.close()
print(json.dumps([before, loaded, answered, resident()]))
"""


def memory(bench: Bench) -> list[Line]:
    """Resident memory of the host: before the load, loaded, after an answer, after close()."""
    lines = []
    model_mb = bench.model.stat().st_size / 1e6
    for isolated, allowed, aim in ((True, 10.0, "10 MB"), (False, model_mb / 10, "10 % of the file")):
        said = run_python(_MEMORY, bench.model, bench.threads, N_CTX, isolated)
        before, loaded, answered, closed = (number / 1e6 for number in json.loads(said))
        name = "isolated" if isolated else "in-process"
        stages = f"{before:.1f}, {loaded:.1f}, {answered:.1f}, {closed:.1f} MB"
        print(f"  {name}: before, loaded, answered, closed: {stages}; the file has {model_mb:.0f} MB", flush=True)
        left = closed - before
        lines.append(Line(f"host's memory left after close(), {name}", f"{left:.1f} MB", aim=aim, met=left <= allowed))
        if isolated:
            most = max(loaded, answered) - before
            lines.append(Line("host's memory while loaded, isolated", f"{most:.1f} MB", aim=aim, met=most <= allowed))
    return lines
