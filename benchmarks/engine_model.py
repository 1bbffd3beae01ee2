"""The models that benchmarks/engine.py runs: random weights of a real shape with a real vocabulary, made once."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.checkpoint_builder import MISTRAL_7B, TINYLLAMA_1B, build_checkpoint, mistral_sentencepiece_model
from zephyr_local.chat_template import ZEPHYR_TEMPLATE
from zephyr_local.convert.hf_to_gguf import convert_checkpoint
from zephyr_local.quantize.types import FileType

SHAPES = {"1.1b": ("tinyllama-1.1b", TINYLLAMA_1B), "7b": ("mistral-7b", MISTRAL_7B)}


def model_file(folder: Path, shape_name: str) -> Path:
    """The shape's Q4_K_M file in ``folder``; the 1.1B one is made where it is not there, which takes a minute or so."""
    name, shape = SHAPES[shape_name]
    path = folder / f"{name}-Q4_K_M.gguf"
    if path.exists():
        return path
    if shape_name != "1.1b":
        raise SystemExit(f"there is no {path}: make it with benchmarks/road.py's checkpoint, or name one by --model")
    print(f"making {path}", flush=True)
    checkpoint = folder / f"{name}.part"
    try:
        build_checkpoint(checkpoint, shape, tokenizer=mistral_sentencepiece_model())
        (checkpoint / "chat_template.jinja").write_text(ZEPHYR_TEMPLATE, encoding="utf-8")  # known: rendered directly
        convert_checkpoint(checkpoint, path, FileType.Q4_K_M)
    finally:
        shutil.rmtree(checkpoint, ignore_errors=True)
    return path
