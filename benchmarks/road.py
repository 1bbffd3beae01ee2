"""Checkpoint to quantized GGUFs: ours in one pass, beside llama.cpp's converter to BF16 and then its llama-quantize.

    python benchmarks/reference/build.py                                         # once: the peer
    python benchmarks/road.py tinyllama-1.1b Q4_K_M --runs 3
    python benchmarks/road.py mistral-7b Q4_K_M Q5_K_M --folder /big/disk

Random BF16 weights of the named shape with the real vocabulary of Mistral-7B-v0.1 (package data of mistral-common).
Several types: ours writes them in one run, the peer converts once and quantizes once for each. The two go first by
turns. All with the same threads (ours has one besides that hashes the checkpoint), each step a process of its own.
Before each road the kernel is asked to forget the checkpoint's pages; the peer's BF16 file may stay in its cache. Wall
and CPU seconds are the whole process's, start included, and until the outputs are on the disk (fsync, which ours does
itself). Anonymous memory is RssAnon of /proc/PID/status, sampled every 10 ms, so that a shorter peak may be missed.
Bytes read are those that came from the disk (ru_inblock, programs included), bytes written those that went into files
(ru_oublock). Linux only.

Ours has compiled its encoders before the first run that counts; ``--first-run`` shows a run that compiles them.
``--run-model`` loads each of our files in llama.cpp and lets it write 32 tokens.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.reference.build import DEFAULT_FOLDER, NotBuiltError, reference_converter, reference_tools
from tests.checkpoint_builder import MISTRAL_7B, TINYLLAMA_1B, build_checkpoint, mistral_sentencepiece_model
from zephyr_local.quantize.encoders import KERNEL_KINDS, EncoderOptions, open_encoder
from zephyr_local.quantize.types import FileType

SHAPES = {"tinyllama-1.1b": TINYLLAMA_1B, "mistral-7b": MISTRAL_7B}


@dataclass(frozen=True, slots=True)
class Cost:
    """What some steps took, one after the other."""

    wall_s: float
    cpu_s: float
    peak_bytes: int
    read_bytes: int
    written_bytes: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.wall_s + other.wall_s,
            self.cpu_s + other.cpu_s,
            max(self.peak_bytes, other.peak_bytes),
            self.read_bytes + other.read_bytes,
            self.written_bytes + other.written_bytes,
        )

    def __str__(self) -> str:
        return (
            f"{self.wall_s:7.1f} s wall {self.cpu_s:7.1f} s CPU {self.peak_bytes / 2**20:6.0f} MiB anonymous "
            f"{self.read_bytes / 1e9:6.2f} GB read {self.written_bytes / 1e9:6.2f} GB written"
        )


def forget(paths: Sequence[Path]) -> None:
    """Asks the kernel to drop the files' pages, so that reading them is reading the disk."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # only clean pages are dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def anonymous_bytes(pid: int) -> int:
    """RssAnon of a process; 0 when it has ended."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def sync(path: Path) -> None:
    """Until the file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def measure(command: Sequence[str], threads: int, output: Path | None = None, cache: Path | None = None) -> Cost:
    """Runs a command to its end, and syncs its output; SystemExit with what it printed where it fails.

    `cache`: the folder for compiled code, in place of the user's.
    """
    settings = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    if cache is not None:
        settings["XDG_CACHE_HOME"] = str(cache)
    with tempfile.TemporaryFile() as log:
        started = time.monotonic()
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=os.environ | settings
        )
        peak = 0
        stop = threading.Event()

        def sample() -> None:
            nonlocal peak
            while not stop.wait(0.01):
                peak = max(peak, anonymous_bytes(process.pid))

        sampler = threading.Thread(target=sample, daemon=True)
        sampler.start()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if output is not None and process.returncode == 0:
            sync(output)
        wall_s = time.monotonic() - started
        stop.set()
        sampler.join()
        if process.returncode != 0:
            log.seek(0)
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{log.read().decode()[-4000:]}")
    return Cost(wall_s, used.ru_utime + used.ru_stime, peak, used.ru_inblock * 512, used.ru_oublock * 512)


@dataclass(frozen=True, slots=True)
class Race:
    """One checkpoint and the types that both make of it."""

    checkpoint: Path
    folder: Path
    types: tuple[FileType, ...]
    threads: int
    reference: Path

    @property
    def shards(self) -> list[Path]:
        return sorted(self.checkpoint.glob("*.safetensors"))

    def ours(self, cache: Path | None = None) -> tuple[Cost, list[Path]]:
        """One run of the command; the files. `cache` as in :func:`measure`."""
        output = self.folder / "ours"
        flags = [f"--{kind.name.lower()}" for kind in self.types]
        given = ["-o", str(output), "--threads", str(self.threads)]
        output.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "zephyr_local", "quantize", str(self.checkpoint), *flags, *given]
        forget(self.shards)
        return measure(command, self.threads, cache=cache), sorted(output.iterdir())

    def theirs(self) -> tuple[Cost, list[Path]]:
        """The converter, then llama-quantize for each type."""
        converter, tools = reference_converter(self.reference), reference_tools(self.reference)
        bf16 = self.folder / "theirs-BF16.gguf"
        forget(self.shards)
        cost = measure(converter.command(self.checkpoint, bf16, "bf16"), self.threads)
        print(f"    of which the converter   {cost}", flush=True)
        files = []
        for kind in self.types:
            files.append(self.folder / f"theirs-{kind.name}.gguf")
            command = [tools["llama-quantize"], bf16, files[-1], kind.name, self.threads]
            cost += measure([str(part) for part in command], self.threads, files[-1])
        bf16.unlink()
        return cost, files


def median(costs: Sequence[Cost]) -> Cost:
    """Of each quantity by itself."""
    pick: Callable[[str], float] = lambda name: statistics.median(getattr(cost, name) for cost in costs)  # noqa: E731
    return Cost(
        pick("wall_s"),
        pick("cpu_s"),
        int(pick("peak_bytes")),
        int(pick("read_bytes")),
        int(pick("written_bytes")),
    )


def generate(model: Path, threads: int) -> None:
    """Loads the file and lets it write: random weights give random text, which is all that is wanted."""
    code = (
        "import sys; from zephyr_local import EngineSettings, Sampling, Zephyr\n"
        "with Zephyr(sys.argv[1], EngineSettings(n_ctx=512, n_threads=int(sys.argv[2])), template='zephyr') as z:\n"
        "    end = z.complete([{'role': 'user', 'content': 'Hello'}], Sampling(temperature=0, max_tokens=32)).finish\n"
        "print(f'{end.completion_tokens} tokens, {(end.completion_tokens - 1) / end.completion_s:.1f} a second')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(model), str(threads)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    print(f"  {model.name} loads and generates: {done.stdout.strip()}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES, help="what to make random weights of")
    parser.add_argument("types", nargs="+", choices=[kind.name for kind in FileType])
    parser.add_argument("--runs", type=int, default=1, help="of both, by turns; the medians are compared")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--layers", type=int, help="cut the shape to so many")
    parser.add_argument("--checkpoint", type=Path, help="keep the checkpoint here, and take it if it is there already")
    parser.add_argument("--folder", type=Path, help="where the checkpoint and the outputs lie for the moment")
    parser.add_argument("--reference", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--first-run", action="store_true", help="show also a run of ours with nothing compiled")
    parser.add_argument("--run-model", action="store_true")
    given = parser.parse_args()
    try:
        reference_converter(given.reference)
        reference_tools(given.reference)
    except NotBuiltError as error:
        raise SystemExit(str(error)) from None
    folder = Path(tempfile.mkdtemp(prefix="road-", dir=given.folder))
    try:
        checkpoint = given.checkpoint or folder / given.shape
        if not (checkpoint / "config.json").is_file():  # written last
            shape = SHAPES[given.shape]
            shape = replace(shape, n_layers=given.layers or shape.n_layers)
            n_shards = 8 if given.shape == "mistral-7b" else 1
            build_checkpoint(checkpoint, shape, n_shards=n_shards, tokenizer=mistral_sentencepiece_model())
        types = tuple(FileType[name] for name in given.types)
        race = Race(checkpoint, folder, types, given.threads, given.reference)
        open_encoder(EncoderOptions(), KERNEL_KINDS)  # compiles, where that is still to be done
        if given.first_run:
            first_run(race)
        compare(race, given.runs, run_model=given.run_model)
    finally:
        shutil.rmtree(folder)


def first_run(race: Race) -> None:
    """Ours, as it is on a machine that never ran it."""
    with tempfile.TemporaryDirectory() as cache:
        cost, files = race.ours(Path(cache))
    print(f"  ours, compiling            {cost}", flush=True)
    for file in files:
        file.unlink()


def compare(race: Race, runs: int, *, run_model: bool) -> None:
    """Both roads by turns, then the ratio of the medians."""
    size = sum(path.stat().st_size for path in race.shards)
    names = ", ".join(kind.name for kind in race.types)
    print(f"{race.checkpoint.name}: {size / 1e9:.2f} GB of BF16 weights to {names}; {race.threads} threads, ", end="")
    print(f"load average {os.getloadavg()[0]:.1f}", flush=True)
    ours: list[Cost] = []
    theirs: list[Cost] = []
    for run in range(runs):
        for road in ("ours", "theirs") if run % 2 == 0 else ("theirs", "ours"):
            if road == "theirs":
                cost, files = race.theirs()
                theirs.append(cost)
                print(f"  converter, llama-quantize  {cost}", flush=True)
            else:
                cost, files = race.ours()
                ours.append(cost)
                print(f"  ours                       {cost}", flush=True)
                if run_model and run == 0:
                    for file in files:
                        generate(file, race.threads)
            for file in files:
                file.unlink()
    one, two = median(ours), median(theirs)
    print(f"medians of {runs}")
    print(f"  ours                       {one}")
    print(f"  converter, llama-quantize  {two}")
    print(
        f"  ours / peer: wall {one.wall_s / two.wall_s:.2f}, CPU {one.cpu_s / two.cpu_s:.2f}, "
        f"memory {one.peak_bytes / two.peak_bytes:.2f}, written {one.written_bytes / max(1, two.written_bytes):.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
