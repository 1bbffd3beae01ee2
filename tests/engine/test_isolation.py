"""The engine's process: how it starts, dies, and is started again; what it leaves behind is nothing."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.command import ROOT
from zephyr_local import EngineCrashed, EngineError, Sampling, Zephyr

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."

LONG = Sampling(temperature=50.0, top_k=0, top_p=1.0)

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX signals and processes")


def run(program: str, *arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=timeout_s, env=env
    )


def ask_for_ever(zephyr: Zephyr) -> None:
    while True:
        zephyr.complete(QUESTION, LONG)


def is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{process_id}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def wait_until_gone(process_id: int, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while is_running(process_id):
        assert time.monotonic() < deadline, "the engine process outlives its parent"
        time.sleep(0.05)


def test_the_host_never_imports_native_code() -> None:
    program = f"""
import sys
from zephyr_local import Zephyr
with Zephyr() as zephyr:
    assert zephyr.complete({QUESTION!r}).text == {ANSWER!r}
    assert zephyr.count_tokens({QUESTION!r}) and zephyr.tokenize("a") and zephyr.embed("a") and zephyr.devices()
    assert zephyr.engine_process_id
heavy = {{"numpy", "llama_cpp", "torch", "jinja2"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = run(program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@posix
@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT"])
def test_a_crash_is_told_and_the_next_call_starts_again(name: str) -> None:
    with Zephyr() as zephyr:
        next(zephyr.stream(QUESTION, LONG))
        first = zephyr.engine_process_id
        assert first is not None
        os.kill(first, getattr(signal, name))
        with pytest.raises(EngineCrashed, match=name) as caught:
            ask_for_ever(zephyr)
        assert caught.value.signal == name
        assert caught.value.exit_code == 6
        assert caught.value.native_log
        assert "sched_reserve" not in caught.value.problem  # what llama.cpp says while all is well
        assert zephyr.complete(QUESTION).text == ANSWER
        assert zephyr.engine_process_id not in (None, first)


@posix
def test_every_waiting_call_is_told() -> None:
    import threading

    with Zephyr() as zephyr:
        outcomes: list[object] = []

        def ask() -> None:
            try:
                ask_for_ever(zephyr)
            except EngineCrashed as error:
                outcomes.append(error.signal)

        # Each waits for an answer of its own when the process is stopped, and so when it is killed.
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        process_id = zephyr.engine_process_id
        assert process_id is not None
        os.kill(process_id, signal.SIGSTOP)
        time.sleep(0.3)
        os.kill(process_id, signal.SIGKILL)
        for thread in threads:
            thread.join(20)
        assert outcomes == ["SIGKILL"] * 4


@posix
def test_the_child_dies_with_its_parent_whoever_holds_the_pipe() -> None:
    program = f"""
import os, sys, time
from zephyr_local import Zephyr
zephyr = Zephyr()
print(zephyr.engine_process_id, flush=True)
if sys.argv[1] == "held":  # a process that came by fork without Python's knowledge holds the pipes
    import ctypes
    if ctypes.CDLL(None).fork() == 0:
        os.close(1); os.close(2)
        time.sleep(30)
        os._exit(0)
zephyr.stream({QUESTION!r})
os.kill(os.getpid(), 9)
"""
    for how in ("free", "held"):
        with subprocess.Popen(
            [sys.executable, "-c", program, how], stdout=subprocess.PIPE, cwd=ROOT, text=True
        ) as process:
            assert process.stdout is not None
            wait_until_gone(int(process.stdout.readline()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_forked_process_has_an_engine_of_its_own() -> None:
    program = f"""
import os
from zephyr_local import Zephyr
zephyr = Zephyr()
mine = zephyr.engine_process_id
child = os.fork()
if child == 0:
    assert zephyr.complete({QUESTION!r}).text == {ANSWER!r}
    assert zephyr.engine_process_id != mine
    with Zephyr() as other:
        assert other.complete({QUESTION!r}).text == {ANSWER!r}
    zephyr.close()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert zephyr.engine_process_id == mine
assert zephyr.complete({QUESTION!r}).text == {ANSWER!r}
"""
    done = run(program)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_script_needs_no_guard_and_is_not_run_again(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"print('once')\nfrom zephyr_local import Zephyr\nprint(Zephyr().complete({QUESTION!r}).text)\n")
    (tmp_path / "json.py").write_text("raise SystemExit('a module of the folder was imported')\n")
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-P", script], capture_output=True, text=True, timeout=60, env=env, cwd=tmp_path
    )
    assert (done.stdout, done.stderr) == (f"once\n{ANSWER}\n", "")


FROZEN = f"""
import sys
sys.frozen = True
sys.path.insert(0, {str(ROOT)!r})
import zephyr_local
if "--forgetful" not in sys.argv and "FORGETFUL" not in __import__("os").environ:
    zephyr_local.freeze_support()
print("the application", flush=True)
with zephyr_local.Zephyr() as zephyr:
    print(zephyr.complete({QUESTION!r}).text)
"""


@posix
def test_frozen(tmp_path: Path) -> None:
    """An executable that runs itself, as a frozen application does."""
    application = tmp_path / "application"
    script = tmp_path / "main.py"
    script.write_text(f"import sys\nsys.executable = {str(application)!r}\n{FROZEN}")
    application.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    application.chmod(0o755)
    done = subprocess.run([application], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"the application\n{ANSWER}\n", "")
    # One that forgets the first line must not start itself over and over.
    forgot = subprocess.run(
        [application], capture_output=True, text=True, timeout=60, env=os.environ | {"FORGETFUL": "1"}
    )
    assert forgot.returncode != 0
    assert forgot.stdout == "the application\n"
    assert "freeze_support" in forgot.stderr


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_nothing_is_left_behind() -> None:
    with Zephyr() as zephyr:
        zephyr.complete(QUESTION)
    before = len(list(Path("/proc/self/fd").iterdir()))
    children: list[int | None] = []
    for _ in range(3):
        with Zephyr() as zephyr:
            zephyr.complete(QUESTION)
            children.append(zephyr.engine_process_id)
    for child in children:
        assert child is not None
        assert not is_running(child)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_native_log_lines_reach_logging(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="zephyr_local.native"), Zephyr() as zephyr:
        zephyr.complete(QUESTION)
    lines = [record.getMessage() for record in caplog.records if record.name == "zephyr_local.native"]
    assert any("general.architecture" in line for line in lines)


def test_what_native_code_prints_is_no_event(caplog: pytest.LogCaptureFixture) -> None:
    program = """
import os, sys
from zephyr_local.engine import worker
print_later = worker.Outbox.put
def put(self, event):
    os.write(1, b"printed by native code\\n")
    print_later(self, event)
worker.Outbox.put = put
worker.main()
"""
    from zephyr_local.engine import protocol

    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        hello = protocol.read(child.stdout)  # type: ignore[arg-type]
        assert hello == protocol.Hello(protocol.VERSION)
        child.stdin.close()
        assert child.stdout.read() == b""
        assert b"printed by native code" in child.stderr.read()


def test_an_engine_that_cannot_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zephyr_local.child_process._interpreter", lambda: "/no/such/python")
    with pytest.raises(EngineError, match="could not be started"):
        Zephyr()


def test_an_engine_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zephyr_local.engine.protocol.VERSION", 99)
    with pytest.raises(EngineCrashed, match="another version"):
        Zephyr()


@posix
def test_calls_of_many_threads_while_the_engine_starts_again() -> None:
    import threading

    with Zephyr() as zephyr:
        for _ in range(3):
            process_id = zephyr.engine_process_id
            assert process_id is not None
            os.kill(process_id, signal.SIGKILL)
            while zephyr.engine_process_id is not None:
                time.sleep(0.01)
            answers: list[str] = []
            threads = [
                threading.Thread(target=lambda found=answers: found.append(zephyr.complete(QUESTION).text))
                for _ in range(6)
            ]
            for number, thread in enumerate(threads):
                thread.start()
                time.sleep(0.02 * number)  # some of them in the middle of the load
            for thread in threads:
                thread.join(30)
            assert answers == [ANSWER] * 6


@posix
def test_an_engine_that_dies_at_its_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = tmp_path / "python"
    dead.write_text("#!/bin/sh\necho a library is missing >&2\nexit 3\n")
    dead.chmod(0o755)
    monkeypatch.setattr("zephyr_local.child_process._interpreter", lambda: str(dead))
    for _ in range(10):
        with pytest.raises(EngineCrashed, match=r"exit code 3.*a library is missing"):
            Zephyr()


def test_a_logging_handler_that_fails_ends_the_engine_and_not_the_calls() -> None:
    class Mistake(Exception):
        pass

    class Failing(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise Mistake

    failing, native = Failing(), logging.getLogger("zephyr_local.native")
    native.addFilter(failing)
    level = native.level
    native.setLevel(logging.DEBUG)
    try:
        with pytest.raises(EngineCrashed, match="Mistake"):
            Zephyr()
    finally:
        native.removeFilter(failing)
        native.setLevel(level)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_pipe_that_is_closed_already_does_not_stop_what_a_fork_does() -> None:
    program = f"""
import os
from zephyr_local import Zephyr
models = [Zephyr() for _ in range(3)]
parents = [model.engine_process_id for model in models]
for model in models[:2]:
    model._client._engine._process.stdin.close()
child = os.fork()
if child == 0:
    for model in models:
        assert model.complete({QUESTION!r}).text == {ANSWER!r}
        assert model.engine_process_id not in parents
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""
    done = run(program)
    assert (done.returncode, done.stderr) == (0, "")


@posix
def test_a_close_while_the_engine_starts_ends_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    from zephyr_local.engine import client
    from zephyr_local.model_handle import ModelHandle

    model = ModelHandle()
    start = client.EngineClient._start

    def closed_meanwhile(self: client.EngineClient) -> client.Engine:
        engine = start(self)
        self.close()
        return engine

    monkeypatch.setattr(client.EngineClient, "_start", closed_meanwhile)
    shares: list[float] = []
    with pytest.raises(EngineError, match="closed"):
        model._client.load(shares.append)
    assert shares == []


@posix
@pytest.mark.parametrize("isolated", [True, False])
def test_a_signal_handler_may_cancel_at_any_moment(isolated: bool) -> None:
    """Also while its own thread holds a lock of the engine's: nothing waits for itself."""
    program = f"""
import faulthandler, random, signal, time
from zephyr_local import Sampling, Zephyr
dice = random.Random(1)
def soon():
    signal.setitimer(signal.ITIMER_REAL, dice.uniform(0.0001, 0.002))
faulthandler.dump_traceback_later(50, exit=True)
sampling = Sampling(temperature=50.0, top_k=0, top_p=1.0, max_tokens=40)
with Zephyr(isolated={isolated}) as zephyr:
    n_handled, reasons, pieces = 0, set(), None
    def handle(*_):
        global n_handled
        n_handled += 1
        if pieces is not None:
            pieces.cancel()
        soon()
    signal.signal(signal.SIGALRM, handle)
    soon()
    end = time.monotonic() + 4
    while time.monotonic() < end:
        pieces = zephyr.stream({QUESTION!r}, sampling)
        for piece in pieces:
            if piece.finish is not None:
                reasons.add(piece.finish.reason)
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert n_handled > 100 and "cancelled" in reasons, (n_handled, reasons)
    assert zephyr.complete({QUESTION!r}).text == {ANSWER!r}
"""
    done = run(program)
    assert done.returncode == 0, done.stderr
