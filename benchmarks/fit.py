"""What `models fit` says of each type beside what the engine's process then takes and how fast it answers.

    python benchmarks/fit.py --folder /some/disk     # random weights of TinyLlama-1.1B's shape; 10 GB of disk

Each type is a file of its own. Memory is the process's peak (VmHWM) less that of one without a model, at a context of
2,048 tokens; the rate is that of one streamed answer of 96 tokens, the median of the runs. The bandwidth is probed anew
before each type, as `models fit` does. Linux.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.memory import of_empty_child, of_process
from tests.checkpoint_builder import TINYLLAMA_1B, build_checkpoint, mistral_sentencepiece_model
from zephyr_local import EngineSettings, Sampling, Zephyr
from zephyr_local.cli.type_fits import fit_of
from zephyr_local.convert.hf_to_gguf import convert_model
from zephyr_local.engine.machine import probed_machine
from zephyr_local.gguf_split import read_model
from zephyr_local.hardware import recommended_threads
from zephyr_local.memory.bandwidth import read_bandwidth_bytes_s
from zephyr_local.memory.shape import shape_of
from zephyr_local.quantize.output_plan import OutputRequest
from zephyr_local.quantize.types import FileType

TYPES = ("Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_0", "Q5_K_M", "Q6_K", "Q8_0", "F16")
N_CTX, N_TOKENS = 2048, 96
QUESTION = [{"role": "user", "content": "Tell me of the sea. " * 8}]


def model_files(folder: Path) -> dict[str, Path]:
    """A file of each type, made where it is not there."""
    paths = {name: folder / f"tinyllama-1.1b-{name}.gguf" for name in TYPES}
    missing = [name for name, path in paths.items() if not path.exists()]
    if missing:
        checkpoint = folder / "tinyllama-1.1b.part"
        try:
            build_checkpoint(checkpoint, TINYLLAMA_1B, tokenizer=mistral_sentencepiece_model())
            convert_model(checkpoint, [OutputRequest(paths[name], FileType[name]) for name in missing])
        finally:
            shutil.rmtree(checkpoint, ignore_errors=True)
    return paths


def answer(path: Path, runs: int) -> tuple[int, float]:
    """The process's peak, and tokens a second after the first token."""
    rates = []
    with Zephyr(path, EngineSettings(n_ctx=N_CTX), template="zephyr") as zephyr:
        for _ in range(runs):
            finish = None
            for piece in zephyr.stream(QUESTION, Sampling(temperature=0, max_tokens=N_TOKENS)):
                finish = piece.finish or finish
            assert finish is not None
            rates.append((finish.completion_tokens - 1) / finish.completion_s)
        peak = of_process(zephyr.engine_process_id or 0).peak_bytes
    return peak, statistics.median(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/fit"), help="where the files are, or are made")
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    machine, empty = probed_machine(), of_empty_child()
    for name, path in model_files(given.folder).items():
        bandwidth = read_bandwidth_bytes_s(recommended_threads())
        fit = fit_of(name, shape_of(read_model(path)), machine, EngineSettings(n_ctx=N_CTX), bandwidth)
        peak, rate = answer(path, given.runs)
        resident = fit.estimates[N_CTX].resident_bytes
        expected = fit.tokens_s or 0.0
        print(
            f"{name:7} peak {resident / 1e6:6.0f} MB said, {(peak - empty.peak_bytes) / 1e6:6.0f} measured "
            f"({resident / (peak - empty.peak_bytes):.3f}); {expected:5.1f} tokens/s expected, {rate:5.1f} measured "
            f"({expected / rate:.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
