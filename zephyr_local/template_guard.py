"""Renders a chat template that came inside a model file: in a child process with limits, killed at a deadline.

A template is a program, and this one was written by whoever made the file. The child (``template_worker``) renders in
Jinja's sandbox under limits on memory, processor time, files and processes; this side keeps the time, and believes
nothing that comes back but that it is text.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import weakref
from collections.abc import Sequence
from typing import Any, Final

from zephyr_local.child_process import start_child
from zephyr_local.errors import EngineError, TemplateError
from zephyr_local.jinja_template import CHOOSE_TEMPLATE
from zephyr_local.template_worker import CPU_S, Chat, most_chars, read_frame, write_frame

DEADLINE_S: Final = 5.0
"""For one request: two renderings of a chat, which take milliseconds."""
START_S: Final = 30.0
"""For the interpreter and Jinja to be there; nothing of the template has run by then."""

_BYTES_PER_CHAR: Final = 6  # a control character as JSON writes it
_MAX_REST_BYTES: Final = 64 << 10  # of an answer besides its texts, and of stderr
_MAX_SAID_CHARS: Final = 500


class GuardedTemplate:
    """A template and the child process that renders it, which is kept for the next chat; safe to share by threads.

    After any failure the child is killed, and the next rendering starts another. It ends with ``close``, with this
    object and with this process. A forked process starts its own.
    """

    def __init__(self, source: str, name: str) -> None:
        self._source, self._name = source, name
        self._lock = threading.Lock()
        self._child: _Child | None = None
        _guards.add(self)

    def render(self, chats: Sequence[Chat], bos: str, eos: str, add_generation_prompt: bool) -> list[str]:
        """Each chat, a list of (role, content), as text. Raises TemplateError."""
        request = {
            "source": self._source,
            "chats": chats,
            "bos": bos,
            "eos": eos,
            "add_generation_prompt": add_generation_prompt,
        }
        body = json.dumps(request, ensure_ascii=False).encode("utf-8", "surrogatepass")
        most_bytes = sum(map(most_chars, chats)) * _BYTES_PER_CHAR + _MAX_REST_BYTES
        with self._lock:
            keep = False
            try:
                answer = self._running_child().ask(body, most_bytes, DEADLINE_S)
                texts = _texts_in(answer, len(chats))
                keep = answer.get("more") is True
            except _Failure as failure:
                raise TemplateError(f"the chat template {self._name}{failure}", CHOOSE_TEMPLATE) from None
            finally:
                if not keep:
                    self._drop()
        return texts

    def close(self) -> None:
        """End the child. A rendering that is under way fails; a later one starts a child again."""
        child = self._child
        if child is not None:
            child.kill()
        with self._lock:
            self._drop()

    def _running_child(self) -> _Child:
        if self._child is not None and not self._child.is_running():
            self._drop()
        if self._child is None:
            self._child = _Child(self)
            self._child.wait_until_ready()
        return self._child

    def _drop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()

    def _forget_after_fork(self) -> None:
        """In a forked process: the lock may have been held and the child is another's."""
        self._lock = threading.Lock()
        child, self._child = self._child, None
        if child is not None:
            child.leave_to_parent()


_guards: Final[weakref.WeakSet[GuardedTemplate]] = weakref.WeakSet()


def _forget_all_after_fork() -> None:
    for guard in list(_guards):
        guard._forget_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all_after_fork)


class _Failure(Exception):  # noqa: N818 — what the template did, as the end of a sentence
    pass


class _Child:
    """One child process and its pipes."""

    def __init__(self, owner: GuardedTemplate) -> None:
        try:
            self._process = start_child("template")
        except EngineError as error:
            raise _Failure(f" cannot be rendered: {error.problem}") from None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin.fileno(), self._process.stdout.fileno()
        self._finalizer = weakref.finalize(owner, _end, self._process, os.getpid())

    def wait_until_ready(self) -> None:
        try:
            self._exchange(None, _MAX_REST_BYTES, START_S, f"{START_S:.0f} seconds to start")
        except _Failure as failure:
            raise _Failure(f" cannot be rendered: its process{failure}") from None

    def ask(self, body: bytes, most_bytes: int, seconds: float) -> dict[str, Any]:
        """Send a request and take the answer. Raises _Failure: the child is dead or not to be believed any more."""
        return self._exchange(body, most_bytes, seconds, f"{seconds:.0f} seconds")

    def is_running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> None:
        """Kill and reap it, once."""
        self._finalizer()

    def leave_to_parent(self) -> None:
        self._finalizer.detach()
        self._process.returncode = 0  # not ours to wait for
        _close_pipes(self._process)

    def _exchange(self, body: bytes | None, most_bytes: int, seconds: float, limit: str) -> dict[str, Any]:
        overdue = threading.Event()

        def kill() -> None:
            overdue.set()
            self._process.kill()

        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()
        try:
            if body is not None:
                write_frame(self._requests, body)
            answer = read_frame(self._answers, most_bytes)
        except OSError:
            answer = None
        except ValueError:
            raise _Failure(f" answers with more than {most_bytes} bytes") from None
        finally:
            timer.cancel()
        if answer is None:
            raise _Failure(f" takes more than {limit}" if overdue.is_set() else self._death())
        return _parsed(answer)

    def _death(self) -> str:
        self._process.kill()
        code = self._process.wait()
        if hasattr(signal, "SIGXCPU") and code == -signal.SIGXCPU:
            return f" takes more than {CPU_S} seconds of processor time"
        if code < 0:
            try:
                how = f"was ended by {signal.Signals(-code).name}"
            except ValueError:
                how = f"was ended by signal {-code}"
        else:
            how = f"ended with code {code}"
        lines = self._stderr().split("\n")
        return f" {how}" + (f" ({lines[-1]})" if lines[-1] else "")

    def _stderr(self) -> str:
        """What the child said while it started; it is dead."""
        assert self._process.stderr is not None
        try:
            descriptor = self._process.stderr.fileno()
            if os.name == "posix":
                os.set_blocking(descriptor, False)  # a process that was forked meanwhile may hold the other end
            return os.read(descriptor, _MAX_REST_BYTES).decode(errors="replace").strip()
        except OSError:
            return ""


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() == owner:
        process.kill()
        process.wait()
        _close_pipes(process)


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _parsed(answer: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(answer.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise _Failure(" is answered with nonsense")
    return parsed


def _texts_in(answer: dict[str, Any], n_chats: int) -> list[str]:
    if isinstance(said := answer.get("error"), str):
        raise _Failure(said[:_MAX_SAID_CHARS])
    texts = answer.get("ok")
    if not isinstance(texts, list) or len(texts) != n_chats or not all(isinstance(text, str) for text in texts):
        raise _Failure(" is answered with nonsense")
    return texts
