"""The engine beside llama.cpp's own programs, and what it survives.

    python benchmarks/reference/build.py --only tools               # once: the peer
    python benchmarks/engine.py
    python benchmarks/engine.py --model zephyr-7b-beta.Q4_K_M.gguf --only decode cold

The same file and the same threads, both by turns in one run, each time in a new process, medians of ``--runs``; the
ratio is the median of those of the pairs. Without ``--model`` a Q4_K_M file
of the 1.1B shape with random weights and a real vocabulary is made in ``--folder``, once; ``--shape 7b`` takes the 7B
file of that folder. The measures:

  decode    one streamed answer of 128 tokens through the isolated API, asked two seconds after a short one (as a person
            types; the engine moves its weights into huge pages meanwhile), beside llama-bench -n 128 -p 0
  busy      the same while another process has a core's worth of work
  parallel  four answers at once, their prompts in the cache, beside llama-batched-bench -npl 4
  cold      a new process to its first token, the file in the page cache, beside llama-completion -n 1 to its end
  chat      tokens that each turn of a chat prefills, and how many of it are new
  import    `import zephyr_local`, without the interpreter's own start
  kills     the engine's process ended by SIGKILL, SIGSEGV and SIGABRT at random moments, ``--times`` of them
  cancels   answers cancelled at random moments of prefill and decoding; then the same question again
  memory    the host's resident memory before the load, loaded, and after close()

Kills and most cancels are of zephyr-tiny, on one thread. Linux only.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.engine_bench import ROOT, Bench, Line, print_table
from benchmarks.engine_faults import cancels, chat, kills
from benchmarks.engine_model import SHAPES, model_file
from benchmarks.engine_speed import busy, cold, decode, imports, memory, parallel
from benchmarks.reference.build import DEFAULT_FOLDER, NotBuiltError, reference_tools

MEASURES: dict[str, Callable[[Bench], list[Line]]] = {
    "decode": decode,
    "busy": busy,
    "parallel": parallel,
    "cold": cold,
    "chat": chat,
    "import": imports,
    "kills": kills,
    "cancels": cancels,
    "memory": memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a GGUF file, instead of the shape's")
    parser.add_argument("--shape", choices=SHAPES, default="1.1b")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "benchmarks", help="where the models are kept")
    parser.add_argument("--runs", type=int, default=5, help="of both, by turns; the medians are compared")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--times", type=int, default=100, help="kills, and cancels of zephyr-tiny")
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES), metavar="NAME")
    parser.add_argument("--reference", type=Path, default=DEFAULT_FOLDER)
    given = parser.parse_args()
    try:
        tools = reference_tools(given.reference)
    except NotBuiltError as error:
        raise SystemExit(str(error)) from None
    given.folder.mkdir(parents=True, exist_ok=True)
    model = given.model or model_file(given.folder, given.shape)
    bench = Bench(model.absolute(), given.threads, given.runs, given.times, tools)
    lines: list[Line] = []
    for name in given.only:
        print(f"{name}; load average {os.getloadavg()[0]:.1f}", flush=True)
        lines += MEASURES[name](bench)
    print(f"\n{model.name}, {given.threads} threads, medians of {given.runs}, ratios of pairs")
    print_table(lines)


if __name__ == "__main__":
    main()
