"""Checkpoint to quantized GGUF: ours in one pass, beside BF16 GGUF and then llama.cpp's quantizer; and that it runs.

    python benchmarks/convert.py tinyllama-1.1b Q4_K_M Q5_K_M
    python benchmarks/convert.py mistral-7b Q4_K_M --folder /big/disk

Random BF16 weights of the named shape with the real vocabulary of Mistral-7B-v0.1 (package data of mistral-common).
The peer is llama.cpp's `llama_model_quantize`, called in the library that llama-cpp-python ships, on a BF16 GGUF that
our own converter wrote before: a better first half than llama.cpp's own converter, which needs torch. Every step
has a process of its own, whose RssAnon (/proc/PID/status: what it holds apart from mapped files) is sampled every
10 ms: a shorter peak may be missed. One run each; repeat it for a median.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.checkpoint_builder import MISTRAL_7B, TINYLLAMA_1B, build_checkpoint, mistral_sentencepiece_model
from zephyr_local.convert.hf_to_gguf import ConvertOptions, convert_checkpoint, default_target_name
from zephyr_local.quantize.types import FileType

SHAPES = {"tinyllama-1.1b": TINYLLAMA_1B, "mistral-7b": MISTRAL_7B}
_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Cost:
    """What one step took."""

    wall_s: float
    cpu_s: float
    peak_mib: float

    def __str__(self) -> str:
        return f"{self.wall_s:7.1f} s wall {self.cpu_s:7.1f} s CPU {self.peak_mib:6.0f} MiB peak anonymous memory"

    def __add__(self, other: Cost) -> Cost:
        """One step after the other."""
        return Cost(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s, max(self.peak_mib, other.peak_mib))


def _anonymous_kib(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1])
    except OSError:
        pass  # it has ended
    return 0


def measure(work: Callable[..., None], *arguments: object) -> Cost:
    """Run ``work`` in a process of its own; the time is that of the work, without the process's start."""
    receiver, sender = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(target=_timed, args=(sender, work, arguments))
    process.start()
    assert process.pid is not None
    peak_kib = 0
    stop = threading.Event()

    def sample() -> None:
        nonlocal peak_kib
        while not stop.wait(0.01):
            peak_kib = max(peak_kib, _anonymous_kib(process.pid or 0))

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        process.join()
    finally:
        stop.set()
        sampler.join()
        process.kill()
    if process.exitcode != 0:
        raise SystemExit(f"{work.__name__} ended with {process.exitcode}")
    wall_s, cpu_s = receiver.recv()
    return Cost(wall_s, cpu_s, peak_kib / 1024)


def _timed(sender: object, work: Callable[..., None], arguments: tuple[object, ...]) -> None:
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    work(*arguments)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    sender.send((time.monotonic() - started, cpu_s))  # type: ignore[attr-defined]


def convert(source: Path, target: Path, file_type: FileType, threads: int) -> None:
    """Ours."""
    convert_checkpoint(source, target, file_type, ConvertOptions(threads=threads))


def llama_quantize(source: Path, target: Path, file_type: FileType, threads: int) -> None:
    """The peer's second half."""
    import llama_cpp

    import zephyr_local.engine.llama  # noqa: F401 - takes llama.cpp's log off the terminal

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = file_type.ftype, threads
    if llama_cpp.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(parameters)) != 0:
        raise SystemExit("llama_model_quantize failed")


def generate(model: Path, threads: int) -> None:
    """Load the file in llama.cpp and let it write: random weights give random text, which is all that is wanted."""
    from zephyr_local import EngineSettings, Sampling, Zephyr

    with Zephyr(model, EngineSettings(n_ctx=512, n_threads=threads), template="zephyr") as zephyr:
        reply = zephyr.complete([{"role": "user", "content": "Hello"}], Sampling(temperature=0, max_tokens=32))
    finish = reply.finish
    rate = (finish.completion_tokens - 1) / finish.completion_s if finish.completion_s else 0.0
    print(f"  loads and generates: {finish.completion_tokens} tokens, {rate:.1f}/s", flush=True)


def compare(source: Path, bf16: Path, bf16_cost: Cost, file_type: FileType, threads: int) -> None:
    """Print both roads to one type, and whether the tensors' bytes are as many."""
    ours = source.parent / default_target_name(source, file_type)
    theirs = ours.with_suffix(".llama_cpp.gguf")
    one_pass = measure(convert, source, ours, file_type, threads)
    two_steps = bf16_cost + measure(llama_quantize, bf16, theirs, file_type, threads)
    print(f"{file_type.name}: {ours.stat().st_size / 2**20:.0f} MiB (llama.cpp's {theirs.stat().st_size / 2**20:.0f})")
    print(f"  ours, one pass        {one_pass}")
    print(f"  BF16, llama_quantize  {two_steps}")
    print(f"  ours / peer: wall {one_pass.wall_s / two_steps.wall_s:.2f}, "
          f"memory {one_pass.peak_mib / two_steps.peak_mib:.2f}", flush=True)  # fmt: skip
    theirs.unlink()
    measure(generate, ours, threads)
    ours.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("types", nargs="+", choices=list(FileType.__members__))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--layers", type=int, help="cut the shape to so many; the peak memory does not depend on it")
    parser.add_argument("--folder", type=Path, help="where the checkpoint and the outputs lie for the moment")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="convert-", dir=given.folder))
    try:
        shape = SHAPES[given.shape]
        shape = replace(shape, n_layers=given.layers or shape.n_layers)
        n_shards = 8 if given.shape == "mistral-7b" else 1
        source = build_checkpoint(
            folder / given.shape, shape, n_shards=n_shards, tokenizer=mistral_sentencepiece_model()
        )
        size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
        print(f"{given.shape}, {shape.n_layers} layers: {size / 2**20:.0f} MiB of BF16 weights; ", end="")
        print(f"{given.threads} threads, load average {os.getloadavg()[0]:.1f}", flush=True)
        bf16 = folder / "bf16.gguf"
        bf16_cost = measure(convert, source, bf16, FileType.BF16, given.threads)
        print(f"BF16 GGUF, ours         {bf16_cost}")
        for name in given.types:
            compare(source, bf16, bf16_cost, FileType[name], given.threads)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
