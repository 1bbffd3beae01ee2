"""A chat with a model on this machine, in a window of Qt's.

Run it with ``python examples/desktop/qt_chat``; with no model it takes zephyr-tiny, which the package brings.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from options import Options

from zephyr_local import EngineSettings, ZephyrError, freeze_support


def read_options() -> Options:
    parser = argparse.ArgumentParser(prog="qt_chat", description="Chat with a model on this machine.")
    parser.add_argument("model", nargs="?", metavar="MODEL", help="path or name of a model; without, zephyr-tiny")
    parser.add_argument("--n-ctx", type=int, metavar="N", help="tokens of context")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="where the last chat is kept")
    parser.add_argument("--no-resume", action="store_true", help="begin with an empty chat")
    parser.add_argument("--self-test", metavar="QUESTION", help="ask, print the answer and end")
    parser.add_argument("--screenshot", metavar="FILE", help="with --self-test: save what the window showed")
    given = parser.parse_args()
    try:
        settings = EngineSettings(n_ctx=given.n_ctx, n_threads=given.threads)
    except ZephyrError as error:
        parser.error(str(error))
    if given.screenshot is not None and given.self_test is None:
        parser.error("--screenshot goes with --self-test")
    resumes = not given.no_resume and given.self_test is None
    return Options(given.model, settings, given.data_dir, resumes, given.self_test, given.screenshot)


def main() -> int:
    options = read_options()
    from application import run  # here, so that a wrong option is told without loading Qt

    return run(options)


if __name__ == "__main__":
    freeze_support()  # the first line: a frozen application is started again as its own engine
    sys.exit(main())
