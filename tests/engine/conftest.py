"""A tiny model of random weights, made once a session, and Mistral's real vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mistral_common
import pytest

from tests.gguf_builder import tiny_model, vocab_only_model
from zephyr_local.engine.llama import LlamaModel
from zephyr_local.gguf_check import check_runnable
from zephyr_local.gguf_file import read_gguf
from zephyr_local.settings import EngineSettings

SETTINGS = EngineSettings(n_ctx=512, n_threads=1, kv_type="f32")
SLOW = EngineSettings(n_ctx=4096, n_batch=512, n_threads=1, kv_type="f32")  # of the slow model


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tiny_model().write(tmp_path_factory.mktemp("models") / "tiny-zephyr.gguf")
    check_runnable(read_gguf(path))
    return path


@pytest.fixture
def tiny(tiny_path: Path) -> Iterator[LlamaModel]:
    model = LlamaModel.load(tiny_path, SETTINGS)
    yield model
    model.close()


@pytest.fixture
def other(tiny_path: Path) -> Iterator[LlamaModel]:
    """The same model once more, for what is expected."""
    model = LlamaModel.load(tiny_path, SETTINGS)
    yield model
    model.close()


@pytest.fixture(scope="session")
def slow_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose prefill takes long enough to be cancelled in the middle (some 25 million weights)."""
    model = tiny_model(n_embd=512, n_head=8, n_head_kv=8, n_block=8, n_ff=1408, n_ctx_train=8192)
    return model.write(tmp_path_factory.mktemp("models") / "slow-zephyr.gguf")


@pytest.fixture(scope="module")
def slow(slow_path: Path) -> Iterator[LlamaModel]:
    model = LlamaModel.load(slow_path, SLOW)
    yield model
    model.close()


@pytest.fixture(scope="session")
def mistral_spm() -> str:
    """The path of Mistral-7B-v0.1's SentencePiece model, which mistral-common ships."""
    return str(Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1")


@pytest.fixture(scope="session")
def mistral_vocabulary(mistral_spm: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaModel]:
    """Mistral's vocabulary in llama.cpp, without weights."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=mistral_spm)
    tokens, scores, types = [], [], []
    for token in range(processor.get_piece_size()):
        tokens.append(processor.id_to_piece(token))
        scores.append(processor.get_score(token))
        if processor.is_unknown(token):
            types.append(2)
        elif processor.is_control(token):
            types.append(3)
        else:
            types.append(6 if processor.is_byte(token) else 1)
    path = vocab_only_model((tokens, scores, types)).write(tmp_path_factory.mktemp("models") / "mistral-vocab.gguf")
    model = LlamaModel.load(path, EngineSettings(), vocab_only=True)
    yield model
    model.close()
