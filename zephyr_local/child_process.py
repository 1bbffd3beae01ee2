"""Starts this package's own child processes, alike from an interpreter and from a frozen application.

multiprocessing's spawn would import the application's ``__main__`` again, which runs every script that has no guard;
this runs one function of ours and nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from typing import Final

from zephyr_local.errors import EngineError

ROLES: Final = {
    "engine": "zephyr_local.engine.worker",
    "template": "zephyr_local.template_worker",
    "probe": "zephyr_local.engine.probe",
}
"""What a child can be → the module whose ``main()`` it runs."""

_MARK: Final = "--zephyr-local-child"  # a frozen application's argv[1]
_ROLE_VARIABLE: Final = "ZEPHYR_LOCAL_CHILD"  # in every child: it must start none by running an application anew
_SPIN_COUNT: Final = "1000"  # what libgomp itself takes where it has more threads than cores
_BOOT: Final = (
    "import json,sys;path,role=json.loads(sys.argv[1]);sys.path[:]=path;"
    "from zephyr_local.child_process import run_child;run_child(role)"
)


def start_child(role: str) -> subprocess.Popen[bytes]:
    """Start a child with pipes for its stdin, stdout and stderr, in a process group of its own.

    Raises EngineError where the system refuses, and in a frozen application that did not call ``freeze_support``.
    """
    if os.environ.get(_ROLE_VARIABLE) == role:
        raise EngineError(
            "this application started itself as zephyr-local's child and then went on as an application",
            "Call zephyr_local.freeze_support() as its first line",
        )
    environment = _environment(role)
    program = _frozen_program()
    if program is not None:
        command = [program, _MARK, role]
    else:
        command = [_interpreter(), *_interpreter_flags(), "-c", _BOOT, json.dumps([sys.path, role])]
    flags = group = None
    if sys.platform == "win32":
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
    else:
        group = 0  # its own: Ctrl+C on the terminal is the application's
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=environment,
            creationflags=flags or 0,
            process_group=group,
        )
    except OSError as error:
        raise EngineError(
            f"the {role} process could not be started: {error.strerror or error}",
            "Check sys.executable, the limit on processes and the memory that is free",
        ) from None


def _environment(role: str) -> dict[str, str]:
    environment = os.environ | {_ROLE_VARIABLE: role, "GGML_NO_BACKTRACE": "1"}  # ggml would start a debugger
    if "OMP_WAIT_POLICY" not in environment:
        # Threads of llama.cpp wait for each other hundreds of times a token. By libgomp's default they then spin for
        # milliseconds, also where the one that they wait for has no core because another process has it.
        environment.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
    return environment


def freeze_support() -> None:
    """Run this process as what it was started for, if it is a frozen application's child; else return at once.

    The first line of a frozen application's main, before it opens a window; elsewhere it does no harm.
    """
    if len(sys.argv) == 3 and sys.argv[1] == _MARK and sys.argv[2] in ROLES:
        run_child(sys.argv[2])
    if sys.argv[-3:-1] == ["-c", _BOOT]:
        # A launcher such as Briefcase's is taken for an interpreter, and passes on what an interpreter was to do.
        run_child(json.loads(sys.argv[-1])[1])


def run_child(role: str) -> None:
    """Be the child: run the role's ``main()`` and end the process."""
    import_module(ROLES[role]).main()
    sys.exit(0)


def _frozen_program() -> str | None:
    """The executable that this application was frozen into; None where an interpreter runs it.

    Of an application in one file that unpacked itself, this starts what was unpacked: with PyInstaller because the
    environment tells its loader, with Nuitka because this is the path of the unpacked executable.
    """
    # Nuitka says what it compiled in a name of each module, and its sys.executable is an interpreter that is not there.
    compiled = getattr(sys.modules.get("__main__"), "__compiled__", None)
    if getattr(compiled, "standalone", False):
        return os.fsdecode(getattr(compiled, "process_exe", None) or sys.argv[0])
    return sys.executable if getattr(sys, "frozen", False) else None


def _interpreter() -> str:
    from multiprocessing.spawn import get_executable  # what an embedder may have set with set_executable

    return os.fsdecode(get_executable() or sys.executable)


def _interpreter_flags() -> list[str]:
    flags = ["-P"]  # nothing from the folder that we happen to be in
    if sys.flags.ignore_environment:
        flags.append("-E")
    if sys.flags.no_user_site:
        flags.append("-s")
    if sys.flags.no_site:
        flags.append("-S")
    return flags
