"""From Enter to a prompt that takes keys, beside llama.cpp's own conversation; and a chat that is gone on with.

    python benchmarks/reference/build.py --only tools               # once: the peer, llama-completion
    python benchmarks/chat_start.py
    python benchmarks/chat_start.py --model zephyr-7b-beta.Q4_K_M.gguf

Each run is a new process on a pseudo-terminal, both by turns, medians of ``--runs``; the ratio is the median of those
of the pairs. Our prompt stands before the model is loaded: `until loaded` is when it shows the context. Without
``--model`` the bundled one. Not on Windows.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pexpect

from benchmarks.engine_bench import pairs_ratio
from benchmarks.reference.build import DEFAULT_FOLDER, NotBuiltError, reference_tools
from zephyr_local.data import bundled_model_path
from zephyr_local.transcripts.store import ChatStore

AIM_S = 0.3
PROMPT = r"\x1b\[\?2004h[^>]*>"  # it begins with taking pasted lines as such
WAIT_S = 120


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--tools", type=Path, default=DEFAULT_FOLDER, help="where benchmarks/reference/build.py built")
    arguments = parser.parse_args()
    try:
        tools = reference_tools(arguments.tools)
    except NotBuiltError as error:
        raise SystemExit(str(error)) from None
    model = arguments.model or bundled_model_path()
    ours, loaded, resumed, peer = [], [], [], []
    with tempfile.TemporaryDirectory() as home:
        folders = {f"XDG_{kind}_HOME": str(Path(home) / kind) for kind in ("DATA", "STATE", "CONFIG")}
        environment = os.environ | folders | {"TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"}
        chat = [sys.executable, "-m", "zephyr_local", "chat", *([str(model)] if arguments.model else [])]
        # Something to go on with, and the page cache warm.
        first = pexpect.spawn(chat[0], [*chat[1:], "--save", "-p", "hi", "--max-tokens", "8"], env=environment)
        first.expect(pexpect.EOF, timeout=WAIT_S)
        with ChatStore(Path(home) / "DATA" / "zephyr-local" / "chats.db") as store:
            assert store.summaries(), "the chat to go on with was not saved"
        completion = [str(tools["llama-completion"]), "-m", str(model), "-cnv", "-c", "1024"]
        for _ in range(arguments.runs):
            times = _times(chat, environment, PROMPT, r"\d+/\d+")
            ours.append(times[0])
            loaded.append(times[1])
            peer.append(_times(completion, environment, r"\n> ")[0])
            resumed.append(_times([*chat, "--continue"], environment, PROMPT)[0])
    median = statistics.median
    print(f"{model.name}, medians of {arguments.runs}")
    print(f"to the prompt            {1000 * median(ours):5.0f} ms, aim {1000 * AIM_S:.0f}: {_met(median(ours))}")
    print(f"to the prompt, --continue{1000 * median(resumed):5.0f} ms, aim {1000 * AIM_S:.0f}: {_met(median(resumed))}")
    print(f"until loaded             {1000 * median(loaded):5.0f} ms")
    print(f"llama-completion -cnv    {1000 * median(peer):5.0f} ms to its prompt")
    print(f"ratio                    {pairs_ratio(ours, peer):5.2f}")


def _times(command: list[str], environment: dict[str, str], *patterns: str) -> list[float]:
    """Seconds from the start of a process until its terminal has shown each pattern, one after the other."""
    found = []
    start_s = time.perf_counter()
    process = pexpect.spawn(command[0], command[1:], env=environment, encoding="utf-8", dimensions=(40, 100))
    for pattern in patterns:
        process.expect(pattern, timeout=WAIT_S)
        found.append(time.perf_counter() - start_s)
    process.close(force=True)
    return found


def _met(seconds: float) -> str:
    return "met" if seconds <= AIM_S else "MISSED"


if __name__ == "__main__":
    main()
