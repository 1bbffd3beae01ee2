"""Where the user's own files live, and how they are made so that nobody else can read them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from zephyr_local.errors import OutputError

APP_NAME: Final = "zephyr-local"


def config_folder() -> Path:
    """The folder of the configuration; it need not exist."""
    from platformdirs import user_config_path  # some milliseconds, which --help must not wait for

    return _found(user_config_path, "config")


def data_folder() -> Path:
    """The folder of what the user wants kept, such as chats; it need not exist."""
    from platformdirs import user_data_path

    return _found(user_data_path, "data")


def state_folder() -> Path:
    """The folder of what may be lost without harm, such as a history of inputs; it need not exist."""
    from platformdirs import user_state_path

    return _found(user_state_path, "state")


def _found(ask: Callable[..., Path], kind: str) -> Path:
    try:
        return ask(APP_NAME, appauthor=False)
    except RuntimeError:  # newer platformdirs, where no home folder is known; older ones answer "~/…"
        return Path("~", kind, APP_NAME)


def make_private_folder(path: Path) -> None:
    """Make a folder and those above it, each for its owner alone; one that exists is left as it is.

    Raises OutputError where that is refused.
    """
    if path.parts[:1] == ("~",):  # what platformdirs answers where no home folder is known
        raise OutputError(f"{path} cannot be made: no home folder is known", "Set the environment variable HOME")
    try:
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir(mode=0o700, exist_ok=True)  # another process may be making it, too
        if not path.is_dir():
            raise OutputError(f"{path} is not a folder", "Move what has its name")
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise OutputError(f"the folder {path} cannot be made: {_reason(error)}", _remedy(path)) from None


def make_private_file(path: Path) -> None:
    """Make an empty file, and its folder, that the owner alone can read; from the first moment on.

    One that exists keeps its contents; if it is ours and others may read or write it, they no longer may. A link goes
    on pointing where it points. Raises OutputError where something else has the name, or the system refuses.
    """
    try:
        target = Path(os.path.realpath(path))
        make_private_folder(target.parent)
        try:
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            _close_to_others(path, target)
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be made: {_reason(error)}", _remedy(path)) from None


def _close_to_others(path: Path, target: Path) -> None:
    # By name, not by a descriptor: closing one would end the locks that SQLite holds on the same file in this process.
    found = target.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OutputError(f"{path} is not a file", "Move what has its name")
    if os.name != "nt" and found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) & 0o077:
        target.chmod(0o600)


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _remedy(path: Path) -> str:
    return f"Check {path.parent}, its permissions and the disk"
