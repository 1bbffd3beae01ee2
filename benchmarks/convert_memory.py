"""What a conversion costs: time, CPU, peak anonymous memory, size. Needs nothing but the disk.

    python benchmarks/convert_memory.py tinyllama-1.1b Q4_K_M Q5_K_M
    python benchmarks/convert_memory.py mistral-7b Q4_K_M --folder /big/disk

Random BF16 weights of the named shape with the real vocabulary of Mistral-7B-v0.1 (package data of mistral-common).
The conversion runs in a process of its own whose RssAnon (/proc/PID/status: what it holds apart from mapped files) is
sampled.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.checkpoint_builder import MISTRAL_7B, TINYLLAMA_1B, build_checkpoint, mistral_sentencepiece_model
from zephyr_local.convert.hf_to_gguf import ConvertOptions, convert_checkpoint, default_target_name
from zephyr_local.quantize.types import FileType

SHAPES = {"tinyllama-1.1b": TINYLLAMA_1B, "mistral-7b": MISTRAL_7B}


def _anonymous_kib(pid: int, field: str = "RssAnon") -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


class PeakMemory:
    """Samples a process until stopped."""

    def __init__(self, pid: int) -> None:
        self.peak_kib = 0
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._stop.wait(0.01):
            self.peak_kib = max(self.peak_kib, _anonymous_kib(self._pid))

    def stop(self) -> int:
        self._stop.set()
        self._thread.join()
        return self.peak_kib


def _convert(source: Path, target: Path, file_type: str, threads: int | None) -> None:
    started = time.monotonic()
    result = convert_checkpoint(source, target, FileType[file_type], ConvertOptions(threads=threads))
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(
        f"{file_type}: {time.monotonic() - started:.1f} s wall, {used.ru_utime + used.ru_stime:.1f} s CPU, "
        f"{result.size_bytes / 2**20:.0f} MiB, {result.bits_per_weight:.2f} bits a weight, "
        f"VmHWM with mapped pages {_anonymous_kib(os.getpid(), 'VmHWM') / 1024:.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("types", nargs="+", choices=list(FileType.__members__))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--layers", type=int, help="cut the shape to so many; the peak memory does not depend on it")
    parser.add_argument("--folder", type=Path, help="where the checkpoint and the outputs lie for the moment")
    parser.add_argument("--keep", action="store_true", help="leave them there")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="convert-memory-", dir=given.folder))
    try:
        started = time.monotonic()
        shape = SHAPES[given.shape]
        shape = replace(shape, n_layers=given.layers or shape.n_layers)
        n_shards = 8 if given.shape == "mistral-7b" else 1
        source = build_checkpoint(
            folder / given.shape, shape, n_shards=n_shards, tokenizer=mistral_sentencepiece_model()
        )
        size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
        print(f"{given.shape}: {size / 2**20:.0f} MiB of BF16 weights made in {time.monotonic() - started:.1f} s")
        print(f"threads: {given.threads or len(os.sched_getaffinity(0))}, load average {os.getloadavg()[0]:.1f}")
        for name in given.types:
            target = folder / default_target_name(source, FileType[name])
            process = multiprocessing.get_context("spawn").Process(
                target=_convert, args=(source, target, name, given.threads)
            )
            process.start()
            assert process.pid is not None
            memory = PeakMemory(process.pid)
            process.join()
            print(f"{name}: peak anonymous memory {memory.stop() / 1024:.0f} MiB", flush=True)
            if process.exitcode != 0:
                raise SystemExit(f"the conversion ended with {process.exitcode}")
            if not given.keep:
                target.unlink()
    finally:
        if not given.keep:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
