"""The child process that renders chat templates from model files: Jinja's sandbox, under limits of the system.

Frames cross two pipes: four bytes with the length, then JSON. The child says ``{}`` when its limits are set. A request
is ``{source, chats, bos, eos, add_generation_prompt}``, its chats lists of ``[role, content]``; the answer is
``{ok: [a text for each chat], more: whether this process takes another request}``, or ``{error: what the template
does}``. End of file on stdin ends the child.

Where the system has no such limits (Windows, in part macOS) the parent's deadline and the limit on output still hold.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any, Final

from zephyr_local.jinja_template import MAX_RENDERED_CHARS, Renderer, RenderFailure, compile_template

MEMORY_BYTES: Final = 400 << 20
"""Address space for the request and the template's work, on top of what the interpreter has when it is ready."""
CPU_S: Final = 2
"""Processor seconds for one request; the system counts whole ones."""
ROOM_CHARS: Final = 256 << 10
"""What a template may write besides the messages."""
ROOM_PER_MESSAGE: Final = 64
"""For the marks around a message: a chat may have many short ones."""

_CPU_IN_ALL_S: Final = 60  # the hard limit; a process that comes near it takes no more requests
_OPEN_FILES: Final = 16  # for imports that Jinja postpones
_PARENT_WATCH_S: Final = 5.0
_LENGTH_BYTES: Final = 4

Chat = list[tuple[str, str]]


def write_frame(descriptor: int, body: bytes) -> None:
    """Raises OSError where the other end is gone."""
    view = memoryview(len(body).to_bytes(_LENGTH_BYTES, "big") + body)
    while view:
        view = view[os.write(descriptor, view[: 1 << 20]) :]


def read_frame(descriptor: int, most_bytes: int) -> bytes | None:
    """The next frame; None at the end of the file, also inside a frame.

    Raises ValueError for one of over ``most_bytes``, and OSError.
    """
    head = _read(descriptor, _LENGTH_BYTES)
    if head is None:
        return None
    length = int.from_bytes(head, "big")
    if length > most_bytes:
        raise ValueError(f"a frame of {length} bytes")
    return _read(descriptor, length)


def _read(descriptor: int, n_bytes: int) -> bytes | None:
    parts: list[bytes] = []
    while n_bytes:
        part = os.read(descriptor, min(n_bytes, 1 << 20))
        if not part:
            return None
        parts.append(part)
        n_bytes -= len(part)
    return b"".join(parts)


def most_chars(chat: Chat) -> int:
    """The characters that a template may make of a chat."""
    given = sum(len(role) + len(content) + ROOM_PER_MESSAGE for role, content in chat)
    return min(given + ROOM_CHARS, MAX_RENDERED_CHARS)


def main() -> None:
    """Serve until stdin ends."""
    requests, answers = 0, os.dup(1)
    parent = os.getppid()
    compile_template("{{ messages | tojson }}{{ strftime_now('%Y') }}")([("user", "")], "", "", True, 1000)  # imports
    import jinja2.debug  # noqa: F401 — Jinja postpones it until a template fails

    warnings.simplefilter("ignore")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stray in (1, 2):  # after the imports, so that what they say on failing is seen
        os.dup2(nothing, stray)
    _limit_process()
    renderers: dict[str, Renderer] = {}
    write_frame(answers, b"{}")
    while _wait_for_request(requests, parent):
        body = read_frame(requests, sys.maxsize)
        if body is None:
            return
        _allow_cpu()
        write_frame(answers, _answer(body, renderers))


def _answer(body: bytes, renderers: dict[str, Renderer]) -> bytes:
    try:
        request = json.loads(body)
        source = request["source"]
        if source not in renderers:
            renderers.clear()
            renderers[source] = compile_template(source, guarded=True)
        texts = [_render(renderers[source], chat, request) for chat in request["chats"]]
        return _packed({"ok": texts, "more": _cpu_is_left()})
    except RenderFailure as failure:
        said = _MEMORY_SAID if failure.memory else failure.said
    except MemoryError:
        said = _MEMORY_SAID
    return _packed({"error": said})


_MEMORY_SAID: Final = f" needs more than {MEMORY_BYTES >> 20} MiB of memory"


def _render(renderer: Renderer, chat: Chat, request: dict[str, Any]) -> str:
    return renderer(chat, request["bos"], request["eos"], request["add_generation_prompt"], most_chars(chat))


def _packed(answer: dict[str, object]) -> bytes:
    return json.dumps(answer, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _wait_for_request(requests: int, parent: int) -> bool:
    """Wait for a request or the end of file; False where the parent is gone though another process holds the pipe."""
    if sys.platform == "win32":
        return True
    import select

    while not select.select([requests], [], [], _PARENT_WATCH_S)[0]:
        if os.getppid() != parent:
            return False
    return True


# --- limits ---


def _limit_process() -> None:
    """Set what holds for the life of the process: nothing here is raised again, by the template least of all."""
    if sys.platform == "win32":
        return
    import resource

    limits = {
        resource.RLIMIT_AS: _mapped_bytes() + MEMORY_BYTES,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: 0,
    }
    for kind, most in limits.items():
        _limit(kind, most, most)
    _limit(resource.RLIMIT_CPU, CPU_S, _CPU_IN_ALL_S)


def _limit(kind: int, soft: int, hard: int) -> None:
    import resource

    _, inherited = resource.getrlimit(kind)
    if inherited != resource.RLIM_INFINITY:
        hard = min(hard, inherited)
    try:
        resource.setrlimit(kind, (min(soft, hard), hard))
    except (OSError, ValueError):  # a system that has the name but not the limit
        return


def _mapped_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 128 << 20


def _allow_cpu() -> None:
    if sys.platform == "win32":
        return
    import resource

    _limit(resource.RLIMIT_CPU, math.ceil(time.process_time()) + CPU_S, _CPU_IN_ALL_S)


def _cpu_is_left() -> bool:
    if sys.platform == "win32":
        return True
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    return hard == resource.RLIM_INFINITY or math.ceil(time.process_time()) + CPU_S <= hard
