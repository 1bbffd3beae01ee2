"""How much memory the engine's process takes, beside what `estimate_memory` says from the header alone.

    python benchmarks/memory.py               # shapes up to TinyLlama-1.1B's
    python benchmarks/memory.py --shapes 7b   # needs 10 GB of memory

Weights are zeros in sparse files, which take as much memory as any. A line is one model in a process of its own: its
peak resident memory (VmHWM, mapped pages of the file included) and its anonymous memory (RssAnon) after a prompt of the
length given, each less that of a process that has loaded the engine and no model. Linux.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.shaped_model import MISTRAL_7B, SMALL, TINYLLAMA_1B, write_shaped_model
from zephyr_local import EngineSettings, Sampling, Zephyr
from zephyr_local.gguf_split import read_model
from zephyr_local.hardware import read_cpu
from zephyr_local.memory.estimate import MemoryEstimate, estimate_memory
from zephyr_local.memory.shape import shape_of
from zephyr_local.quantize.types import FileType

SHAPES = {"small": SMALL, "1b": TINYLLAMA_1B, "7b": MISTRAL_7B}
ALLOWED = 0.10


@dataclass(frozen=True)
class Case:
    shape: str
    file_type: str
    n_ctx: int
    kv_type: str
    prompt_tokens: int


CASES = (
    Case("small", "Q4_K_M", 2048, "f16", 1900),
    Case("small", "F16", 8192, "q8_0", 1900),
    Case("small", "Q8_0", 4096, "f32", 3900),
    Case("small", "Q2_K", 16384, "f16", 1900),
    Case("1b", "Q4_K_M", 2048, "f16", 900),
    Case("1b", "Q5_K_M", 4096, "q8_0", 600),
    Case("1b", "Q8_0", 8192, "f16", 600),
    Case("1b", "Q4_0", 2048, "f32", 1900),
    Case("1b", "Q3_K_M", 16384, "q8_0", 600),
    Case("1b", "Q6_K", 512, "f16", 400),
    Case("7b", "Q4_K_M", 4096, "f16", 600),
    Case("7b", "Q5_K_M", 8192, "q8_0", 600),
)


@dataclass(frozen=True)
class Measured:
    peak_bytes: int
    anonymous_bytes: int


def of_process(process_id: int | str) -> Measured:
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{process_id}/status").read_text().splitlines())
    return Measured(*(int(lines[name].split()[0]) * 1024 for name in ("VmHWM", "RssAnon")))


def of_empty_child() -> Measured:
    """A process that has imported all that the engine's does."""
    code = "import zephyr_local.engine.service; print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        measured = of_process(child.pid)
        child.communicate(b"\n")
    return measured


def measure(case: Case, folder: Path, empty: Measured) -> tuple[Measured, MemoryEstimate]:
    path = folder / "zephyr-shaped.gguf"
    write_shaped_model(path, SHAPES[case.shape], FileType.parse(case.file_type))
    settings = EngineSettings(n_ctx=case.n_ctx, kv_type=case.kv_type)  # type: ignore[arg-type]
    with Zephyr(path, settings, template="zephyr") as zephyr:
        question = [{"role": "user", "content": "a " * (case.prompt_tokens - 60)}]
        zephyr.complete(question, Sampling(temperature=0, max_tokens=2))
        found = of_process(zephyr.engine_process_id or 0)
    estimate = estimate_memory(shape_of(read_model(path)), settings, read_cpu().features)
    return (
        Measured(found.peak_bytes - empty.peak_bytes, found.anonymous_bytes - empty.anonymous_bytes),
        estimate,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["small", "1b"])
    shapes = parser.parse_args().shapes
    empty = of_empty_child()
    print(f"an empty process: {empty.peak_bytes / 1e6:.0f} MB resident, {empty.anonymous_bytes / 1e6:.0f} MB anonymous")
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            if case.shape not in shapes:
                continue
            found, estimate = measure(case, Path(folder), empty)
            ratios = (
                estimate.resident_bytes / found.peak_bytes,
                estimate.anonymous_bytes / found.anonymous_bytes,
            )
            worst = max(worst, *(abs(ratio - 1) for ratio in ratios))
            what = f"{case.shape:5} {case.file_type:6} n_ctx {case.n_ctx:5} kv {case.kv_type:4}"
            peak = f"peak {estimate.resident_bytes / 1e6:7.0f} MB of {found.peak_bytes / 1e6:7.0f} ({ratios[0]:.3f})"
            anonymous = f"{estimate.anonymous_bytes / 1e6:7.0f} of {found.anonymous_bytes / 1e6:7.0f} ({ratios[1]:.3f})"
            print(f"{what} prompt {case.prompt_tokens:4}: {peak}, anonymous {anonymous}", flush=True)
    print(f"the worst is {worst:.1%} off; allowed are {ALLOWED:.0%}")
    raise SystemExit(worst > ALLOWED)


if __name__ == "__main__":
    main()
