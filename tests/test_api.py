"""What applications rely on: laziness, streaming, cancelling, threads, errors; isolated and in-process alike."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import zephyr_local
from tests.cli.command import ROOT
from tests.engine.conftest import SETTINGS, slow_path, tiny_path  # noqa: F401 — fixtures
from tests.gguf_builder import tiny_model
from zephyr_local import (
    ContextExceededError,
    EngineError,
    EngineSettings,
    InvalidInputError,
    Message,
    ModelFileError,
    ModelNotFoundError,
    Reply,
    Sampling,
    TemplateError,
    Zephyr,
)

HELLO = [{"role": "user", "content": "the hen in a den"}]
GREEDY = Sampling(temperature=0, max_tokens=24)
ENDLESS = Sampling(temperature=0, max_tokens=None)


@pytest.fixture(params=[True, False], ids=["isolated", "in-process"])
def isolated(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def zephyr(tiny_path: Path, isolated: bool) -> Iterator[Zephyr]:  # noqa: F811
    with Zephyr(tiny_path, SETTINGS, isolated=isolated) as model:
        yield model


def test_importing_loads_nothing_heavy() -> None:
    program = (
        "import sys; before = set(sys.modules); import zephyr_local; zephyr_local.Message; zephyr_local.Sampling();"
        "heavy = {'numpy', 'llama_cpp', 'jinja2', 'torch', 'ctypes', 'asyncio'} & (set(sys.modules) - before);"
        "assert not heavy, heavy; print(zephyr_local.__version__)"
    )
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert child.returncode == 0, child.stderr
    assert child.stdout.strip()


def test_every_public_name_exists() -> None:
    for name in zephyr_local.__all__:
        assert getattr(zephyr_local, name) is not None
        assert name in dir(zephyr_local)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = zephyr_local.nonsense  # type: ignore[attr-defined]


def test_stream_and_complete_agree(zephyr: Zephyr) -> None:
    pieces = list(zephyr.stream(HELLO, GREEDY))
    reply = zephyr.complete([Message("user", "the hen in a den")], GREEDY)
    assert isinstance(reply, Reply)
    assert reply.text == "".join(piece.text for piece in pieces)
    assert reply.finish.completion_tokens <= 24
    assert reply.finish.prompt_tokens == zephyr.count_tokens(HELLO)
    assert reply.finish.cached_tokens == reply.finish.prompt_tokens - 1
    assert zephyr.model_name == "zephyr test"
    assert len(zephyr.notices) == 1
    assert zephyr.n_ctx == 512


def test_bad_input_is_refused_at_once_and_worker_errors_reach_the_caller(zephyr: Zephyr) -> None:
    with pytest.raises(InvalidInputError, match="role 'robot'"):
        zephyr.stream([{"role": "robot", "content": ""}])
    stream = zephyr.stream([{"role": "user", "content": "x " * 400}])
    with pytest.raises(ContextExceededError, match="512"):
        next(stream)
    assert zephyr.complete(HELLO, GREEDY).text  # and it still works


def test_dropping_the_iterator_cancels(zephyr: Zephyr) -> None:
    for _ in range(5):
        for _piece in zephyr.stream(HELLO, ENDLESS):
            break
    stream = zephyr.stream(HELLO, ENDLESS)
    next(stream)
    del stream
    gc.collect()
    assert zephyr.complete(HELLO, GREEDY).finish.completion_tokens > 0
    zephyr.stream(HELLO)  # never read: costs nothing


def test_two_answers_in_one_thread_run_side_by_side(zephyr: Zephyr) -> None:
    alone = zephyr.complete(HELLO, GREEDY).text
    first, second = zephyr.stream(HELLO, ENDLESS), zephyr.stream(HELLO, GREEDY)
    next(first)
    assert "".join(piece.text for piece in second) == alone
    first.close()
    assert zephyr.complete(HELLO, GREEDY).text == alone


def test_eight_threads_on_one_model_all_get_their_answers(zephyr: Zephyr) -> None:
    questions = [[{"role": "user", "content": f"the hen in a den {'x ' * n}"}] for n in range(8)]
    expected = [zephyr.complete(question, GREEDY).text for question in questions]
    answers: list[list[str]] = [[] for _ in questions]

    def ask(n: int) -> None:
        answers[n] += [zephyr.complete(questions[n], GREEDY).text for _ in range(4)]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [[text] * 4 for text in expected]


def test_a_slow_reader_holds_nobody_back(zephyr: Zephyr) -> None:
    slow = zephyr.stream(HELLO, ENDLESS)
    next(slow)
    assert zephyr.complete(HELLO, GREEDY).finish.completion_tokens > 0
    pieces = list(slow)
    assert pieces[-1].finish_reason == "length"


def test_closing_during_an_answer_and_use_afterwards(tiny_path: Path, isolated: bool) -> None:  # noqa: F811
    model = Zephyr(tiny_path, SETTINGS, isolated=isolated)
    stream = model.stream([{"role": "user", "content": "x " * 100}], ENDLESS)
    next(stream)
    model.close()
    model.close()
    with contextlib.suppress(EngineError):  # where its end did not come through
        assert list(stream)[-1].finish_reason in ("cancelled", "length")  # the latter where it had ended before
    for use in (lambda: model.stream(HELLO), lambda: model.complete(HELLO), lambda: model.count_tokens(HELLO)):
        with pytest.raises(EngineError, match="closed"):
            use()


def test_an_answer_that_is_waited_for_while_the_model_closes(slow_path: Path, isolated: bool) -> None:  # noqa: F811
    model = Zephyr(slow_path, EngineSettings(n_ctx=8192, n_threads=1), isolated=isolated)
    outcome: list[object] = []

    def wait() -> None:
        try:
            outcome.append(model.complete([{"role": "user", "content": "x " * 3500}]).finish.reason)
        except EngineError as error:
            outcome.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.3)
    model.close()
    waiting.join(20)
    assert len(outcome) == 1
    assert outcome[0] == "cancelled" or "closed" in str(outcome[0])


def test_a_missing_model() -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        Zephyr("/no/such/model.gguf")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_refused_and_not_the_current_folder(name: str) -> None:
    with pytest.raises(InvalidInputError, match="the model's name is empty"):
        Zephyr(name)


def test_the_bundled_model_has_a_name_unless_a_file_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Zephyr("zephyr-tiny", isolated=False) as named:
        assert named.default_sampling == Sampling(temperature=0.0)
        assert named.model_name == "zephyr-tiny"
    (tmp_path / "zephyr-tiny").write_bytes(b"of ours")
    with pytest.raises(ModelFileError, match="zephyr-tiny is not a GGUF"):
        Zephyr("zephyr-tiny", isolated=False)


def test_an_installation_without_the_bundled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zephyr_local.data.BUNDLED_MODEL", "no-such-file.gguf")
    with pytest.raises(ModelNotFoundError, match=r"no-such-file\.gguf"):
        Zephyr()


def test_progress(tiny_path: Path, isolated: bool) -> None:  # noqa: F811
    seen: list[float] = []
    Zephyr(str(tiny_path), SETTINGS, on_progress=seen.append, isolated=isolated).close()
    assert seen[-1] == 1.0

    def fail(_: float) -> None:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        Zephyr(tiny_path, SETTINGS, on_progress=fail, isolated=isolated)


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_ctrl_c_during_prefill(slow_path: Path, isolated: bool) -> None:  # noqa: F811
    model = Zephyr(slow_path, EngineSettings(n_ctx=8192, n_batch=8192, n_threads=1), isolated=isolated)
    sent: list[float] = []

    def interrupt() -> None:
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.4, interrupt)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        model.complete([{"role": "user", "content": "x " * 3500}])
    waited_s = time.perf_counter() - sent[0]
    assert waited_s < 2  # a watchdog
    assert model.complete(HELLO, Sampling(max_tokens=2)).finish.completion_tokens > 0
    model.close()


def test_leaving_the_interpreter_in_the_middle_of_an_answer(tiny_path: Path, isolated: bool) -> None:  # noqa: F811
    program = (
        "from zephyr_local import *\n"
        f"z = Zephyr({str(tiny_path)!r}, EngineSettings(n_ctx=512, n_threads=1), isolated={isolated})\n"
        "s = z.stream([{'role': 'user', 'content': 'the hen in a den'}], Sampling(temperature=0, max_tokens=None))\n"
        "next(s); next(s)\n"
    )
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (child.returncode, child.stdout, child.stderr) == (0, "", "")


def test_ctrl_c_while_a_model_loads_ends_the_load(tmp_path: Path, isolated: bool) -> None:
    """SIGINT in the middle of reading weights: nothing printed by ctypes, KeyboardInterrupt in the caller."""
    large = tiny_model(n_embd=1024, n_head=8, n_head_kv=8, n_block=4, n_ff=4096)  # 260 MB of F32
    path = tmp_path / "zephyr-large.gguf"
    path.write_bytes(large.build())
    program = f"""
import os, signal, threading, time
from zephyr_local import Zephyr
begun = threading.Event()
def interrupt():
    begun.wait()
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
try:
    Zephyr({str(path)!r}, on_progress=lambda share: begun.set(), isolated={isolated})
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.stdout == "interrupted\n", done
    assert done.stderr == ""


def test_an_error_while_loading_reaches_the_caller(tiny_path: Path, isolated: bool) -> None:  # noqa: F811
    class Stop(Exception):
        pass

    def stop(_share: float) -> None:
        raise Stop

    with pytest.raises(Stop):
        Zephyr(tiny_path, on_progress=stop, isolated=isolated)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_in_process_a_forked_child_is_told_and_leaves(tiny_path: Path) -> None:  # noqa: F811
    program = f"""
import os, sys
from zephyr_local import EngineError, Zephyr
model = Zephyr({str(tiny_path)!r}, isolated=False)
child = os.fork()
if child == 0:
    try:
        model.complete([{{"role": "user", "content": "a"}}])
    except EngineError as error:
        assert "fork" in str(error)
        model.close()
        sys.exit(7)
    sys.exit(8)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert model.complete([{{"role": "user", "content": "a"}}]).finish.completion_tokens >= 1
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_an_answer_may_change_threads(zephyr: Zephyr) -> None:
    pieces = zephyr.stream(HELLO, Sampling(temperature=0, max_tokens=8))
    reader = threading.Thread(target=lambda: next(pieces))
    reader.start()
    reader.join()
    list(pieces)  # goes on in this thread
    assert zephyr.complete(HELLO, Sampling(temperature=0, max_tokens=2)).finish.completion_tokens <= 2


@pytest.mark.parametrize(
    "wrong", ["Hello", ["hello"], [None], {"role": "user", "content": "x"}, [{"role": "user"}], []]
)
def test_what_is_no_list_of_messages_is_refused(zephyr: Zephyr, wrong: object) -> None:
    with pytest.raises(InvalidInputError):
        zephyr.stream(wrong)  # type: ignore[arg-type]


def test_the_bundled_model_is_asked_for_its_likeliest_answer() -> None:
    with Zephyr() as bundled:
        assert bundled.default_sampling == Sampling(temperature=0.0)
        question = [{"role": "user", "content": "What is the capital of France?"}]
        assert bundled.complete(question).text == bundled.complete(question, Sampling(temperature=0)).text


def test_progress_of_a_prefill_and_an_exception_in_it(slow_path: Path, isolated: bool) -> None:  # noqa: F811
    long = [{"role": "user", "content": "x " * 400}]
    with Zephyr(slow_path, EngineSettings(n_ctx=2048, n_threads=2), isolated=isolated) as model:
        seen: list[tuple[int, int]] = []
        list(model.stream(long, Sampling(max_tokens=1), on_prefill=lambda done, total: seen.append((done, total))))
        n_tokens = model.count_tokens(long)
        assert seen[-1] == (n_tokens, n_tokens)
        assert len(seen) >= n_tokens // 128
        assert seen == sorted(seen)

        def fail(_done: int, _total: int) -> None:
            raise RuntimeError("mine")

        other = [{"role": "user", "content": "y " * 400}]
        with pytest.raises(RuntimeError, match="mine"):
            list(model.stream(other, on_prefill=fail))
        assert model.complete(HELLO, Sampling(max_tokens=2)).finish.completion_tokens >= 1


def test_tokens_embeddings_devices(zephyr: Zephyr) -> None:
    ids = zephyr.tokenize("the hen </s>")
    assert ids
    assert not {0, 1, 2} & set(ids)
    one, same, other = zephyr.embed("the hen"), zephyr.embed("the hen"), zephyr.embed("a den in")
    assert sum(x * x for x in one) == pytest.approx(1.0)
    assert one == pytest.approx(same, abs=1e-5)
    assert one != pytest.approx(other, abs=1e-3)
    assert any("CPU" in device for device in zephyr.devices())
    with pytest.raises(InvalidInputError, match="string"):
        zephyr.tokenize(5)  # type: ignore[arg-type]
    with pytest.raises(ContextExceededError):
        zephyr.embed("x " * 600)


def test_log_probabilities(zephyr: Zephyr) -> None:
    reply = zephyr.complete(HELLO, Sampling(temperature=0, max_tokens=5, logprobs=3))
    assert len(reply.logprobs) == reply.finish.completion_tokens
    for entry in reply.logprobs:
        assert entry.token == entry.top[0].token
        assert entry.logprob == entry.top[0].logprob <= 0
        assert [t.logprob for t in entry.top] == sorted((t.logprob for t in entry.top), reverse=True)
    assert zephyr.complete(HELLO, GREEDY).logprobs == ()


def test_a_chat_computes_only_its_new_tokens() -> None:
    with Zephyr() as bundled:
        chat = bundled.chat()
        known = 0
        for question in ("hi there", "What is the capital of France?", "and of Japan?", "7 times 8?"):
            finish = chat.ask(question).finish
            assert finish.cached_tokens >= known
            known = finish.prompt_tokens + finish.completion_tokens - 1  # the last one sampled was not decoded


def test_errors_have_their_kind_on_both_sides(tmp_path: Path, isolated: bool) -> None:
    moe = tiny_model()
    moe.metadata["llama.expert_count"] = ("u32", 1)
    with pytest.raises(ModelFileError, match="expert_count"):
        Zephyr(moe.write(tmp_path / "moe.gguf"), isolated=isolated)
    with pytest.raises(TemplateError, match="--template"):
        Zephyr(tiny_model(name="mistral").write(tmp_path / "mistral.gguf"), isolated=isolated)
    nan = tiny_model()
    nan.tensors[0].data = b"\0\0\xc0\x7f" + nan.tensors[0].data[4:]
    with pytest.raises(EngineError, match="invalid data"):
        Zephyr(nan.write(tmp_path / "zephyr-nan.gguf"), isolated=isolated)


def test_cancel_and_close_from_another_thread(slow_path: Path, isolated: bool) -> None:  # noqa: F811
    long = [{"role": "user", "content": "x " * 3500}]
    with Zephyr(slow_path, EngineSettings(n_ctx=8192, n_threads=1, n_parallel=1), isolated=isolated) as model:
        for how in ("cancel", "close"):
            pieces = model.stream(long)
            threading.Timer(0.3, getattr(pieces, how)).start()
            started = time.perf_counter()
            got = list(pieces)
            assert time.perf_counter() - started < 5  # a watchdog: the prefill takes longer
            assert [piece.finish_reason for piece in got] == (["cancelled"] if how == "cancel" else [])
            assert list(pieces) == []
        # One that waits for its turn, too.
        first, second = model.stream(HELLO, ENDLESS), model.stream(HELLO, ENDLESS)
        next(first)
        threading.Timer(0.2, second.cancel).start()
        assert [piece.finish_reason for piece in second] == ["cancelled"]
        first.close()
        early = model.stream(HELLO)
        early.cancel()
        assert list(early)[-1].finish_reason == "cancelled"


def test_a_chat_is_cancelled_from_another_thread(slow_path: Path) -> None:  # noqa: F811
    with Zephyr(slow_path, EngineSettings(n_ctx=2048, n_threads=1)) as model:
        chat = model.chat(sampling=ENDLESS)
        reading = threading.Event()

        def cancel_while_it_reads() -> None:
            reading.wait(60)
            chat.cancel()

        canceller = threading.Thread(target=cancel_while_it_reads)
        canceller.start()
        pieces = list(chat.stream("x " * 100, on_prefill=lambda _done, _total: reading.set()))
        canceller.join()
        assert pieces[-1].finish_reason in ("cancelled", "length")
        assert reading.is_set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_an_open_answer_in_a_forked_process_ends_with_an_error() -> None:
    program = """
import os
from zephyr_local import EngineError, Sampling, Zephyr
zephyr = Zephyr()
pieces = zephyr.stream([{"role": "user", "content": "a"}], Sampling(temperature=50.0, top_k=0))
next(pieces)
child = os.fork()
if child == 0:
    try:
        list(pieces)
    except EngineError as error:
        assert "fork" in str(error), error
        os._exit(7)
    os._exit(8)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert list(pieces)[-1].finish_reason in ("stop", "length")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_an_answer_keeps_its_model() -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    assert "".join(piece.text for piece in Zephyr().stream(question)) == "The capital of France is Paris."


def test_dropped_answers_in_cycles_hang_nothing(zephyr: Zephyr) -> None:
    """The garbage collector may find them anywhere, also while a request is being sent."""
    thresholds = gc.get_threshold()
    gc.set_threshold(20, 2, 2)
    try:
        for _ in range(60):
            pieces = zephyr.stream(HELLO, ENDLESS)
            next(pieces)
            cycle: list[object] = [pieces]
            cycle.append(cycle)
            del pieces, cycle
            assert zephyr.tokenize("the hen")
    finally:
        gc.set_threshold(*thresholds)
    assert zephyr.complete(HELLO, GREEDY).finish.completion_tokens > 0


@pytest.mark.parametrize("name", ["zephyr-local-prepare", "zephyr-local-engine"])
def test_a_model_that_is_closed_on_an_engine_thread_is_freed(tiny_path: Path, name: str) -> None:  # noqa: F811
    """Where the garbage collector may find it."""
    before = set(threading.enumerate())
    model = Zephyr(tiny_path, SETTINGS, isolated=False)
    closed = threading.Event()
    service = model._client._engine._service  # type: ignore[union-attr]
    emit = service._emit

    def close_there(event: object) -> None:
        emit(event)
        if threading.current_thread().name == name and not closed.is_set():
            closed.set()
            model._client.close()

    service._emit = close_there
    with contextlib.suppress(EngineError):
        if name == "zephyr-local-prepare":
            model.tokenize("a")
        else:
            model.complete(HELLO, GREEDY)
    assert closed.wait(20)
    for thread in set(threading.enumerate()) - before:
        thread.join(20)
        assert not thread.is_alive()


def test_arguments_of_another_type_are_refused_at_once_and_others_go_on(zephyr: Zephyr) -> None:
    wrong: Any = {"temperature": 0}
    beside = zephyr.stream(HELLO, ENDLESS)
    next(beside)
    process_id = zephyr.engine_process_id
    for call in (
        lambda: zephyr.stream(HELLO, wrong),
        lambda: zephyr.complete(HELLO, wrong),
        lambda: zephyr.chat(sampling=wrong),
        lambda: zephyr.chat().ask("hello", wrong),
        lambda: Zephyr(settings=wrong),
        lambda: Zephyr(settings=Sampling()),  # type: ignore[arg-type]
        lambda: Zephyr(isolated="no"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidInputError, match="is of type"):
            call()
    assert zephyr.engine_process_id == process_id
    assert list(beside)[-1].finish is not None


def test_the_progress_of_a_chat_that_is_in_the_cache(zephyr: Zephyr) -> None:
    zephyr.complete(HELLO, GREEDY)
    steps: list[tuple[int, int]] = []
    *_, last = zephyr.stream(HELLO, GREEDY, on_prefill=lambda done, total: steps.append((done, total)))
    assert last.finish is not None
    assert last.finish.cached_tokens == last.finish.prompt_tokens - 1
    assert steps == [(last.finish.prompt_tokens, last.finish.prompt_tokens)]
