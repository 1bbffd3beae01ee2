"""The parent's side of an engine process: starts it, reads its events, and tells how it ended."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable
from typing import IO, BinaryIO, Final

from zephyr_local.child_process import start_child
from zephyr_local.engine import protocol
from zephyr_local.engine.native_log import KEPT_LINES, LOGGER, MAX_LINE_CHARS
from zephyr_local.errors import EngineCrashed, EngineError

_LEAVE_S: Final = 5.0  # how long a process that was told to end may take before it is killed
_SHOWN_LINES: Final = 5
_OF_MEMORY: Final = ("SIGKILL", "SIGABRT", "SIGSEGV", "SIGBUS")  # how a lack of memory may end it


class RemoteEngine:
    """One engine process. ``on_event`` and ``on_lost`` are called on threads of this object and must not wait."""

    def __init__(
        self, on_event: Callable[[protocol.Event], None], on_lost: Callable[[RemoteEngine, EngineError], None]
    ) -> None:
        """Raises EngineError where it cannot be started."""
        self._on_event, self._on_lost = on_event, on_lost
        self._owner = os.getpid()
        self._log: deque[tuple[int, str]] = deque(maxlen=KEPT_LINES)
        self._closing = False
        self.lost: EngineError | None = None
        """How it ended, where it has; set before ``on_lost`` is called."""
        self._unsent: deque[bytes] = deque()
        self._sending = threading.Lock()  # nobody waits for it
        self._process = start_child("engine")
        self._reader = threading.Thread(target=self._read_events, name="zephyr-local-events", daemon=True)
        self._stderr = threading.Thread(target=self._read_stderr, name="zephyr-local-stderr", daemon=True)
        self._stderr.start()
        self._reader.start()

    @property
    def process_id(self) -> int:
        return self._process.pid

    def send(self, request: protocol.Request) -> None:
        """Send a request, from a signal handler too; where the process has ended, ``on_lost`` tells it."""
        self._unsent.append(protocol.encode(request))
        while self._unsent and self._sending.acquire(blocking=False):  # else who sends now sends this, too
            try:
                self._write_unsent()
            finally:
                self._sending.release()

    def _write_unsent(self) -> None:
        try:
            while self._unsent:
                data = self._unsent[0]  # which stays, should an exception (Ctrl+C) come while it is written
                written = _pipe(self._process.stdin).write(data)
                if written < len(data):
                    self._unsent[0] = data[written:]
                else:
                    self._unsent.popleft()
        except (OSError, ValueError):  # the reader sees the end
            self._unsent.clear()

    def close(self) -> None:
        """End the process and wait for its end; it is killed where that takes too long. Closing twice is fine."""
        if self._owner != os.getpid():
            return
        self._closing = True
        with contextlib.suppress(OSError):
            _pipe(self._process.stdin).close()
        try:
            self._process.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for thread in (self._reader, self._stderr):
            if thread is not threading.current_thread():
                thread.join(_LEAVE_S)

    def forget_after_fork(self) -> None:
        """In a forked process: close the copies of the pipes, or the parent's end would not end the child."""
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(OSError):
                _pipe(stream).close()  # nothing where it is closed already
        self._process.returncode = 0  # or Popen would wait for a child that is not this process's

    def _read_events(self) -> None:
        reason = ""
        try:
            with os.fdopen(_pipe(self._process.stdout).fileno(), "rb", closefd=False) as stream:
                self._expect_hello(stream)
                while (event := protocol.read(stream)) is not None:
                    if isinstance(event, protocol.NativeLog):
                        self._log.append((event.level, event.line))
                        LOGGER.log(event.level, "%s", event.line)
                    else:
                        self._on_event(event)  # type: ignore[arg-type]
        except Exception as error:  # a handler of the application's logging, too: the end must be told
            reason = str(error) if isinstance(error, protocol.ProtocolError) else f"{type(error).__name__}: {error}"
            self._process.kill()
        code = self._process.wait()
        self._stderr.join(1.0)
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                _pipe(pipe).close()
        if self._closing:
            self.lost = EngineError("the model was closed", "Make a new Zephyr")
        else:
            self.lost = self._crash(code, reason)
        self._on_lost(self, self.lost)

    def _expect_hello(self, stream: BinaryIO) -> None:
        try:
            hello = protocol.read(stream)
        except protocol.ProtocolError:
            hello = protocol.Cancel(0)  # not what an engine says first, whatever it is
        if hello is None:
            return  # it ended, and how is told by its exit code
        if not isinstance(hello, protocol.Hello):
            raise protocol.ProtocolError(
                "what was started is no engine; a frozen application calls zephyr_local.freeze_support() first of all"
            )
        if hello.version != protocol.VERSION:
            raise protocol.ProtocolError("it is of another version: zephyr-local was exchanged while it ran")

    def _read_stderr(self) -> None:
        with os.fdopen(_pipe(self._process.stderr).fileno(), "rb", closefd=False) as stream:
            while line := stream.readline(MAX_LINE_CHARS):
                text = line.decode("utf-8", "replace").strip()
                if text:
                    self._log.append((logging.WARNING, text))
                    LOGGER.log(logging.WARNING, "%s", text)
        with contextlib.suppress(OSError):
            _pipe(self._process.stderr).close()

    def _crash(self, code: int, reason: str) -> EngineCrashed:
        name = None
        if reason:
            how = f"was ended: {reason}"
        elif code < 0:
            try:
                name = signal.Signals(-code).name
            except ValueError:
                name = f"signal {-code}"
            how = f"was ended by {name}"
            if name == "SIGKILL":
                how += ", as the system does when memory runs out"
        else:
            how = f"ended with exit code {code}"
        lines = tuple(line for _, line in self._log)
        telling = [line for level, line in self._log if level >= logging.WARNING]
        said = f"; it last said: {'; '.join(telling[-_SHOWN_LINES:])}" if telling else ""
        remedy = "The next call starts it again"
        if name in _OF_MEMORY or code > 0:
            remedy += "; if that fails too, use a smaller n_ctx or fewer n_gpu_layers"
        return EngineCrashed(
            f"the engine process {how}{said}",
            remedy,
            signal=name,
            native_log=lines,
        )


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None, "every child has three pipes"
    return stream
