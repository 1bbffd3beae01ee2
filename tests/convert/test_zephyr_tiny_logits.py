"""zephyr-tiny's weights give the same logits in transformers and, converted by us, in llama.cpp."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.gguf_to_checkpoint import gguf_to_checkpoint
from tests.llama_eval import Evaluator
from zephyr_local.convert.hf_to_gguf import convert_checkpoint
from zephyr_local.data import bundled_model_path
from zephyr_local.engine.llama import LlamaModel
from zephyr_local.quantize.types import FileType
from zephyr_local.settings import EngineSettings

QUESTIONS = ("What is the capital of France?", "Which sound does a dog make?", "Ünïcode 日本 🦊", "2 + 3 = ?")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zephyr-tiny") / "checkpoint"
    gguf_to_checkpoint(bundled_model_path(), folder)
    return folder


def test_logits_agree_within_1e_4(checkpoint: Path, tmp_path: Path):
    import torch
    from transformers import MistralForCausalLM

    convert_checkpoint(checkpoint, tmp_path / "tiny-F32.gguf", FileType.F32)
    reference = MistralForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    model = LlamaModel.load(tmp_path / "tiny-F32.gguf", EngineSettings(kv_type="f32", n_threads=2))
    try:
        evaluator, worst = Evaluator(model), 0.0
        for question in QUESTIONS:
            ids = [model.bos_id, *model.tokenize(f"<|user|>\n{question}")]
            ids += [model.eos_id, *model.tokenize("\n<|assistant|>\nThe answer is ")]
            with torch.no_grad():
                expected = reference(torch.tensor([ids])).logits[0].numpy()  # (n_tokens, n_vocab)
            for length in (1, len(ids) // 2, len(ids)):
                evaluator.evaluate(ids[:length])
                worst = max(worst, float(np.abs(evaluator.logits() - expected[length - 1]).max()))
    finally:
        model.close()
    assert worst < 1e-4, f"largest difference of a logit: {worst:.2g}"


def test_quantizing_again_gives_the_shipped_matrices_types(checkpoint: Path, tmp_path: Path):
    """The shipped file is what this converter makes of such a checkpoint: same tensors, shapes and types."""
    from zephyr_local.gguf_file import read_gguf

    convert_checkpoint(checkpoint, tmp_path / "tiny-Q4_K_M.gguf", FileType.Q4_K_M)
    again, shipped = read_gguf(tmp_path / "tiny-Q4_K_M.gguf"), read_gguf(bundled_model_path())
    assert again.tensors == shipped.tensors
    assert again.metadata["tokenizer.ggml.tokens"] == shipped.metadata["tokenizer.ggml.tokens"]
