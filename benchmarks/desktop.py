"""How long a window's event loop is held up while a model loads and answers, beside llama-cpp-python on a thread.

    python benchmarks/desktop.py                        # needs the extra qt; Xvfb where there is no display
    python benchmarks/desktop.py --model zephyr-7b-beta.Q4_K_M.gguf --runs 5

Both show the same window and do the same, by turns, each time in a new process: load, answer a question of some 400
tokens with 64, and stop in the reading of a prompt of some 1,500. Ours is ``zephyr_local.desktop.qt``; the peer is what
applications do by hand: ``Llama`` on a thread of the window's process, its pieces sent by a signal, and a Stop that is
looked at between pieces. A timer of 1 ms in the event loop tells how long it was held up. Medians of ``--runs``; the
ratio is the median of those of the pairs. Without ``--model`` the 1.1B shape with random weights at Q4_K_M
(benchmarks/engine.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.engine_bench import ROOT
from benchmarks.engine_model import SHAPES, model_file

WINDOW = Path(__file__).parent / "desktop_window.py"
MEASURES = {
    "load_ms": "longest stall while loading, ms",
    "answer_ms": "longest stall while answering, ms",
    "p99_ms": "99th percentile of stalls while answering, ms",
    "stop_ms": "from Stop in the prompt to the end, ms",
    "loaded_s": "load, s",
    "answered_s": "answer, s",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a GGUF file, instead of the shape's")
    parser.add_argument("--shape", choices=SHAPES, default="1.1b")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "benchmarks", help="where the models are kept")
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    model = (given.model or model_file(given.folder, given.shape)).absolute()
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}
    with display() as name:
        for number in range(given.runs):
            for whose in ("ours", "peer") if number % 2 == 0 else ("peer", "ours"):
                runs[whose].append(measure(whose, model, name))
                print(f"{whose}: {runs[whose][-1]}; load average {os.getloadavg()[0]:.1f}", flush=True)
    print(f"\n{model.name}, {os.cpu_count()} cores, medians of {given.runs} (worst), ratios of pairs")
    for key, label in MEASURES.items():
        ours, peer = ([run[key] for run in runs[whose]] for whose in ("ours", "peer"))
        ratio = statistics.median(a / b for a, b in zip(ours, peer, strict=True) if b)
        print(f"{label:46} {_told(ours):>18} {_told(peer):>18} {ratio:8.3f}")


def _told(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({max(values):.1f})"


def measure(whose: str, model: Path, display_name: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, WINDOW, whose, model],
        env=os.environ | {"DISPLAY": display_name, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        check=True,
        timeout=900,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@contextlib.contextmanager
def display() -> Iterator[str]:
    """The display that there is, else one of Xvfb's."""
    if name := os.environ.get("DISPLAY"):
        yield name
        return
    with tempfile.TemporaryFile() as errors:
        reader, writer = os.pipe()
        server = subprocess.Popen(
            ["Xvfb", "-displayfd", str(writer), "-screen", "0", "1280x1024x24"], pass_fds=[writer], stderr=errors
        )
        os.close(writer)
        try:
            with os.fdopen(reader) as told:
                yield f":{told.readline().strip()}"
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
